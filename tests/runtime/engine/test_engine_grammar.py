"""Constrained generation on random weights: what comes out matches, whatever the model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_harness import Runtime, tiny_model
from tiny_models import save_tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.cache import CachedCompiler
from radixrt.runtime.grammar.llguidance import LlguidanceCompiler
from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.wire import Done, EngineFailed, GrammarSpec

EOS = 2
VOCAB_SIZE = 320


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer without merges: every text has tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<s>", "</s>"]
    vocab = {token: i for i, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def compiler(tokenizer_file: Path) -> LlguidanceCompiler:
    return LlguidanceCompiler(tokenizer_file, VOCAB_SIZE, [EOS])


@pytest.fixture(scope="module")
def big_model(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return tiny_model(save_tiny(tmp_path_factory.mktemp("big"), vocab_size=VOCAB_SIZE))


@pytest.fixture
def runtime(big_model: CausalLM, compiler: LlguidanceCompiler) -> Runtime:
    return Runtime(big_model, grammars=CachedCompiler(compiler))


def text_of(tokenizer_file: Path, runtime: Runtime, call: int) -> str:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    return str(tokenizer.decode(runtime.tokens(call), skip_special_tokens=True))


SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 20, 300]}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    }
)
GRAMMAR = 'start: "(" body ")"\nbody: "x" | "(" body ")"\n'


@pytest.mark.parametrize("overlap", [0, 1])
def test_every_kind_of_constraint_holds_beside_free_neighbours(
    big_model: CausalLM, compiler: LlguidanceCompiler, tokenizer_file: Path, overlap: int
) -> None:
    runtime = Runtime(big_model, grammars=CachedCompiler(compiler), overlap=overlap)
    rng = np.random.default_rng(0)
    free: list[tuple[int, list[int]]] = []
    bound: dict[str, list[int]] = {"regex": [], "json_schema": [], "grammar": []}
    texts = {"regex": r"[a-c]{3}-\d\d", "json_schema": SCHEMA, "grammar": GRAMMAR}
    for i in range(4):
        prompt = rng.integers(3, 250, 5 + i).tolist()
        free.append((runtime.run(prompt, max_tokens=12), prompt))
        for kind, text in texts.items():
            bound[kind].append(
                runtime.run(
                    prompt,
                    max_tokens=120,
                    temperature=1.0,
                    seed=i,
                    grammar=GrammarSpec(kind, text),  # type: ignore[arg-type]
                    stop_token_ids=(EOS,),
                )
            )
    runtime.finish()
    for call in bound["regex"]:
        assert re.fullmatch(texts["regex"], text_of(tokenizer_file, runtime, call))
        assert (runtime.end(call).reason, runtime.end(call).matched) == ("stop", None)
    for call in bound["json_schema"]:
        value = json.loads(text_of(tokenizer_file, runtime, call))
        assert set(value) == {"ok", "n"}
        assert value["n"] in (1, 20, 300)
    for call in bound["grammar"]:
        if runtime.end(call).reason == "stop":
            assert re.fullmatch(r"\(+x\)+", text_of(tokenizer_file, runtime, call))
    for call, prompt in free:
        assert runtime.tokens(call) == Runtime(big_model).generate(prompt, max_tokens=12)


def test_the_end_token_is_allowed_only_where_the_text_is_complete(
    runtime: Runtime, tokenizer_file: Path
) -> None:
    # The bias wants the end at once; the constraint decides.
    call = runtime.run(
        [5, 6],
        max_tokens=50,
        grammar=GrammarSpec("regex", "a{4,9}"),
        logit_bias=((EOS, 1000.0),),
        stop_token_ids=(EOS,),
    )
    runtime.finish()
    assert text_of(tokenizer_file, runtime, call) == "aaaa"
    assert (runtime.end(call).reason, runtime.end(call).matched) == ("stop", EOS)


def test_a_constraint_that_cannot_be_compiled_is_refused_with_the_reason(runtime: Runtime) -> None:
    calls: dict[str, Any] = {
        "regex": runtime.run([5], grammar=GrammarSpec("regex", "a(")),
        "json_schema": runtime.run([5], grammar=GrammarSpec("json_schema", '{"type": 7}')),
        "not json": runtime.run([5], grammar=GrammarSpec("json_schema", "{")),
        "grammar": runtime.run([5], grammar=GrammarSpec("grammar", "start: missing")),
    }
    fine = runtime.run([5], grammar=GrammarSpec("regex", "ab"))
    runtime.finish()
    for call in calls.values():
        end = runtime.end(call)
        assert isinstance(end, EngineFailed)
        assert end.code == "bad_request"
        assert len(end.message) > 10
    assert isinstance(runtime.end(fine), Done)


def test_without_a_tokenizer_constraints_are_unsupported(model: CausalLM) -> None:
    runtime = Runtime(model)
    call = runtime.run([5], grammar=GrammarSpec("regex", "a"))
    runtime.finish()
    assert runtime.end(call).code == "unsupported"


def test_a_matcher_that_gives_up_fails_its_call_alone(runtime: Runtime) -> None:
    call = runtime.run([5], max_tokens=20, grammar=GrammarSpec("regex", "a{30}"))
    other = runtime.run([6], max_tokens=10)
    runtime.step()
    request = runtime.slots.requests[0]
    assert request is not None
    assert request.matcher is not None

    def broken(bitmask: Any) -> None:
        raise GrammarError("too many states")

    request.matcher.fill = broken  # type: ignore[method-assign]
    runtime.finish()
    end = runtime.end(call)
    assert isinstance(end, EngineFailed)
    assert "too many states" in end.message
    compiled = runtime.calls._grammars
    assert compiled is not None
    before = compiled.num_compiled
    again = runtime.generate([5], max_tokens=40, grammar=GrammarSpec("regex", "a{30}"))
    assert len(again) == 30
    assert compiled.num_compiled == before + 1  # forks share limits: the failed one is not reused
    assert len(runtime.tokens(other)) == 10


def test_retraction_keeps_the_place_in_the_constraint(
    big_model: CausalLM, compiler: LlguidanceCompiler, tokenizer_file: Path
) -> None:
    runtime = Runtime(big_model, grammars=CachedCompiler(compiler), num_pages=30)
    runtime.scheduler.admission.min_share = runtime.scheduler.admission.growth_share = 0.0
    calls = [
        runtime.run([5 + i] * 8, max_tokens=60, grammar=GrammarSpec("regex", "(ab){25}"))
        for i in range(4)
    ]
    runtime.finish()
    assert runtime.metrics.retractions > 0
    for call in calls:
        assert text_of(tokenizer_file, runtime, call) == "ab" * 25


def test_compiled_constraints_are_kept_by_content_and_bounded(compiler: LlguidanceCompiler) -> None:
    cached = CachedCompiler(compiler, capacity=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        cached.compile(GrammarSpec("regex", text))
    assert (cached.num_compiled, cached.num_hits) == (4, 2)
    with pytest.raises(GrammarError):
        cached.compile(GrammarSpec("regex", "("))


def test_a_matcher_forks_rolls_back_and_knows_when_it_is_complete(
    compiler: LlguidanceCompiler, tokenizer_file: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    a, b = (tokenizer.encode(text).ids[0] for text in "ab")
    matcher = compiler.compile(GrammarSpec("regex", "ab?"))
    assert not matcher.is_accepting
    matcher.advance(a)
    assert matcher.is_accepting
    assert not matcher.is_finished
    fork = matcher.fork()
    fork.advance(b)
    assert fork.is_finished
    assert not matcher.is_finished
    matcher.rollback(1)
    assert not matcher.is_accepting
    with pytest.raises(GrammarError):
        matcher.advance(b)
