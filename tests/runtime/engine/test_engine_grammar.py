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
from radixrt.runtime.grammar.llguidance import LlguidanceEngine, LlguidanceMatcher, regex_grammar
from radixrt.runtime.grammar.service import GrammarService
from radixrt.runtime.grammar.session import Session
from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.wire import Done, EngineFailed, FieldParams, GrammarSpec

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
def grammar_engine(tokenizer_file: Path) -> LlguidanceEngine:
    return LlguidanceEngine(tokenizer_file, VOCAB_SIZE, [EOS], 1)


def service(engine: LlguidanceEngine, **options: Any) -> GrammarService:
    return GrammarService(lambda: engine, num_threads=0, **options)


@pytest.fixture(scope="module")
def big_model(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return tiny_model(save_tiny(tmp_path_factory.mktemp("big"), vocab_size=VOCAB_SIZE))


@pytest.fixture
def runtime(big_model: CausalLM, grammar_engine: LlguidanceEngine) -> Runtime:
    return Runtime(big_model, grammars=service(grammar_engine))


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
    big_model: CausalLM, grammar_engine: LlguidanceEngine, tokenizer_file: Path, overlap: int
) -> None:
    runtime = Runtime(big_model, grammars=service(grammar_engine), overlap=overlap)
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


def test_a_matcher_that_gives_up_fails_its_call_alone(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = runtime.run([5], max_tokens=20, grammar=GrammarSpec("regex", "[ab]{30}"))
    other = runtime.run([6], max_tokens=10)
    runtime.step()
    request = runtime.slots.requests[0]
    assert request is not None
    assert request.session is not None
    broken = request.session.matcher

    def check(matcher: LlguidanceMatcher, bitmask: Any) -> None:
        if matcher is broken:
            raise GrammarError("too many states")

    monkeypatch.setattr(LlguidanceMatcher, "check", check)
    monkeypatch.setattr(Session, "is_mask_complete", False)  # it would ask the engine
    runtime.finish()
    end = runtime.end(call)
    assert isinstance(end, EngineFailed)
    assert (end.code, end.message) == ("constraint", "too many states")
    again = runtime.generate([5], max_tokens=40, grammar=GrammarSpec("regex", "[ab]{30}"))
    assert len(again) == 30
    assert len(runtime.tokens(other)) == 10


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("jump_forward", [True, False])
def test_retraction_keeps_the_place_in_the_constraint(
    big_model: CausalLM,
    grammar_engine: LlguidanceEngine,
    tokenizer_file: Path,
    overlap: int,
    jump_forward: bool,
) -> None:
    runtime = Runtime(big_model, grammars=service(grammar_engine), num_pages=30, overlap=overlap)
    runtime.scheduler.admission.min_share = runtime.scheduler.admission.growth_share = 0.0
    spec = GrammarSpec("regex", "([ab]cd){17}", jump_forward=jump_forward)
    calls = [runtime.run([5 + i] * 8, max_tokens=60, grammar=spec) for i in range(4)]
    runtime.finish()
    assert runtime.metrics.retractions > 0
    for call in calls:
        assert re.fullmatch("([ab]cd){17}", text_of(tokenizer_file, runtime, call))


def schema_of(*names: str) -> str:
    return json.dumps(
        {
            "type": "object",
            "properties": {name: {"type": "string", "maxLength": 6} for name in names},
            "required": list(names),
            "additionalProperties": False,
        }
    )


@pytest.mark.parametrize("overlap", [0, 1])
def test_jump_forward_changes_the_number_of_steps_and_not_the_text(
    big_model: CausalLM, grammar_engine: LlguidanceEngine, overlap: int
) -> None:
    text = schema_of("the_first_name", "the_second_name")
    outcomes = []
    for jump_forward in (True, False):
        runtime = Runtime(big_model, grammars=service(grammar_engine), overlap=overlap)
        spec = GrammarSpec("json_schema", text, jump_forward=jump_forward)
        calls = [
            runtime.run(
                [7 + i] * 6,
                max_tokens=100,
                grammar=spec,
                stop_token_ids=(EOS,),
                temperature=float(i % 2),
                seed=i,
            )
            for i in range(4)
        ]
        free = runtime.run([9, 9], max_tokens=20)
        runtime.finish()
        forced = runtime.end(calls[0]).usage.forced
        outcomes.append(([*map(runtime.tokens, [*calls, free])], runtime.metrics.steps, forced))
    (with_, steps_with, forced), (without, steps_without, none_forced) = outcomes
    assert with_ == without
    assert steps_with < 0.7 * steps_without
    assert forced > 30
    assert none_forced == 0


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("max_tokens", [34, 36, 41, 60])
def test_a_text_is_closed_within_its_budget_or_refused_before_it_begins(
    big_model: CausalLM,
    grammar_engine: LlguidanceEngine,
    tokenizer_file: Path,
    overlap: int,
    max_tokens: int,
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "items": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"key": {"type": "string"}, "value": {"type": "integer"}},
                    "required": ["key", "value"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["name", "items"],
        "additionalProperties": False,
    }
    spec = GrammarSpec("json_schema", json.dumps(schema), finish="valid")
    runtime = Runtime(big_model, grammars=service(grammar_engine), overlap=overlap)
    calls = [
        runtime.run(
            [5, 6],
            max_tokens=max_tokens,
            grammar=spec,
            temperature=1.5,
            seed=seed,
            stop_token_ids=(EOS,),
        )
        for seed in range(12)
    ]
    too_short = runtime.run([5], max_tokens=9, grammar=spec)
    runtime.finish()
    for call in calls:
        assert len(runtime.tokens(call)) <= max_tokens
        assert isinstance(json.loads(text_of(tokenizer_file, runtime, call))["items"], list)
    end = runtime.end(too_short)
    assert isinstance(end, EngineFailed)
    shortest = len('{"name":"","items":[]}')
    assert f"takes {shortest} tokens" in end.message


def test_compiled_constraints_are_kept_by_content_and_bounded(
    big_model: CausalLM, grammar_engine: LlguidanceEngine
) -> None:
    grammars = service(grammar_engine, capacity=2)
    runtime = Runtime(big_model, grammars=grammars)
    for text in ("a", "b", "a", "c", "a", "b", "("):
        runtime.generate([5], grammar=GrammarSpec("regex", text))
    assert (grammars.num_compiled, grammars.cache.num_hits) == (4, 2)
    assert (grammars.num_refused, len(grammars.cache)) == (1, 2)


def test_a_matcher_forks_rolls_back_and_knows_when_it_is_complete(
    grammar_engine: LlguidanceEngine, tokenizer_file: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    a, b = (tokenizer.encode(text).ids[0] for text in "ab")
    matcher = grammar_engine.build(regex_grammar("ab?"))
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


UNIQUE = json.dumps(
    {
        "type": "array",
        "items": {"enum": ["aa", "bb", "cc"]},
        "minItems": 3,
        "maxItems": 3,
        "uniqueItems": True,
    }
)


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_checked_text_is_valid_or_its_call_fails(
    big_model: CausalLM,
    grammar_engine: LlguidanceEngine,
    tokenizer_file: Path,
    overlap: int,
    threads: int,
) -> None:
    grammars = GrammarService(lambda: grammar_engine, num_threads=threads)
    runtime = Runtime(big_model, grammars=grammars, overlap=overlap)
    spec = GrammarSpec("json_schema", UNIQUE, finish="valid", retries=30)
    calls = [
        runtime.run(
            [5 + i, 6], max_tokens=40, grammar=spec, temperature=1.0, seed=i, stop_token_ids=(EOS,)
        )
        for i in range(6)
    ]
    hopeless = runtime.run(
        [9],
        max_tokens=40,
        stop_token_ids=(EOS,),
        grammar=GrammarSpec("json_schema", UNIQUE, finish="valid", retries=0),
        temperature=1.0,
        seed=3,
    )
    free = runtime.run([5, 5], max_tokens=25)
    runtime.finish(limit=5_000_000)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    rewound = 0
    for call in calls:
        tokens: list[int] = []
        for sampled in runtime.sampled(call):
            if sampled.rewind:
                rewound += 1
                del tokens[len(tokens) - sampled.rewind :]
            tokens += sampled.token_ids
        end = runtime.end(call)
        assert isinstance(end, Done), end
        value = json.loads(tokenizer.decode(tokens, skip_special_tokens=True))
        assert sorted(value) == ["aa", "bb", "cc"]
        assert end.grammar is not None
        assert end.usage.completion == len(tokens)
        assert ("", "uniqueItems", "checked") in end.grammar.enforcement
    assert rewound > 0
    end = runtime.end(hopeless)
    assert isinstance(end, Done) or (end.code == "value_refused" and "1 attempts" in end.message)
    assert runtime.tokens(free) == Runtime(big_model).generate([5, 5], max_tokens=25)


@pytest.mark.parametrize("overlap", [0, 1])
def test_free_text_comes_before_the_constraint(
    big_model: CausalLM, grammar_engine: LlguidanceEngine, tokenizer_file: Path, overlap: int
) -> None:
    runtime = Runtime(big_model, grammars=service(grammar_engine), overlap=overlap)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    prompt = tokenizer.encode("<think>").ids
    spec = GrammarSpec("choices", '["yes","no"]', finish="valid", after="</think>")
    free = Runtime(big_model).generate(prompt, max_tokens=20, stop_token_ids=(EOS,))
    free = [token for token in free if token != EOS]
    call = runtime.run(prompt, max_tokens=40, grammar=spec, stop_token_ids=(EOS,))
    runtime.finish()
    before, marker, answer = text_of(tokenizer_file, runtime, call).partition("</think>")
    assert marker
    assert answer in ("yes", "no")
    assert runtime.tokens(call)[: len(free)] == free
    assert len(runtime.tokens(call)) <= 40
    assert before


def test_fields_have_their_own_sampling_and_marks_tell_of_the_mask(
    big_model: CausalLM, grammar_engine: LlguidanceEngine
) -> None:
    text = schema_of("a", "b")
    warm = FieldParams("/a", temperature=1.0)
    outcomes = []
    for seed in range(4):
        runtime = Runtime(big_model, grammars=service(grammar_engine))
        spec = GrammarSpec("json_schema", text, finish="valid", fields=(warm,), marks=True)
        call = runtime.run([7, 8], max_tokens=60, grammar=spec, seed=seed, stop_token_ids=(EOS,))
        runtime.finish()
        marks = [mark for sampled in runtime.sampled(call) for mark in sampled.marks]
        assert len(marks) == len(runtime.tokens(call))
        assert {mark.kind for mark in marks} == {"sampled", "forced"}
        for mark in marks:
            assert mark.allowed >= 1
            assert 0 <= mark.removed <= 1
            assert mark.logprob <= 1e-6
            if mark.kind == "forced":
                assert (mark.allowed, mark.logprob) == (1, 0.0)
        assert any(mark.removed > 0.01 for mark in marks)
        outcomes.append(tuple(runtime.tokens(call)))
    assert len(set(outcomes)) > 1  # greedy but for one field
