"""Outputs under constraints: text that is taken back, held back, scored and traced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_tokenizer import write_model_directory

from radixrt.errors import InvalidArgument
from radixrt.protocol import Constraint, FieldSampling, Generate, Sampling
from radixrt.runtime.frontend.constraints import grammar_spec, healing_spec
from radixrt.runtime.frontend.outcome import field_scores
from radixrt.runtime.frontend.output_stream import OutputStream
from radixrt.runtime.frontend.validation import check_constraint
from radixrt.runtime.tokenizer import Tokenizer
from radixrt.runtime.wire import Done, EngineUsage, GrammarReport, Sampled, TokenMark

USAGE = EngineUsage(1, 0, 1, 0, 1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = write_model_directory(tmp_path_factory.mktemp("tiny"))
    return Tokenizer(path)


def stream(tokenizer: Tokenizer, *, healed: int = 0, trace: bool = False) -> OutputStream:
    constraint = Constraint("json_schema", "{}")
    op = Generate(1, 1, Sampling(), constraint, stream=True, trace=trace)
    return OutputStream(0, op, tokenizer, [], (), tokenizer.end_ids, healed)


def sampled(tokens: list[int], *, rewind: int = 0, provisional: bool = False) -> Sampled:
    marks = tuple(TokenMark("sampled", 2, 0.5, -1.0) for _ in tokens)
    return Sampled(1, tuple(tokens), (), rewind, marks, provisional)


def done(attempts: int = 1) -> Done:
    report = GrammarReport((("", "uniqueItems", "checked"),), ("left out",), "", attempts)
    return Done(1, "stop", USAGE, grammar=report)


def test_text_that_may_be_taken_back_is_sent_when_it_is_final(tokenizer: Tokenizer) -> None:
    output = stream(tokenizer)
    wrong, right = (tokenizer.encode(text).tolist() for text in ("[1,1]", "[1,2]"))
    output.take(sampled(wrong, provisional=True))
    assert output.chunk(1) is None
    output.take(sampled([], rewind=len(wrong), provisional=True))
    output.take(sampled(right, provisional=True))
    assert output.chunk(1) is None
    output.finish(done(attempts=2))
    chunk = output.chunk(1)
    assert chunk is not None
    assert (chunk.text, list(chunk.token_ids)) == ("[1,2]", right)
    result = output.result()
    assert (result.text, list(result.token_ids), result.attempts) == ("[1,2]", right, 2)
    assert result.enforcement[0].status == "checked"
    assert result.warnings == ("left out",)


def test_text_that_was_sent_is_never_taken_back(tokenizer: Tokenizer) -> None:
    output = stream(tokenizer)
    tokens = tokenizer.encode("[1,1]").tolist()
    output.take(sampled(tokens))
    assert output.chunk(1) is not None
    with pytest.raises(InvalidArgument, match="invalid"):
        output.take(sampled([], rewind=len(tokens)))


def test_what_heals_the_prompt_is_no_part_of_the_text(tokenizer: Tokenizer) -> None:
    output = stream(tokenizer, healed=2, trace=True)
    tokens = tokenizer.encode("the answer").tolist()
    output.take(sampled(tokens))
    output.finish(done())
    chunk = output.chunk(1)
    assert chunk is not None
    assert chunk.text == output.result().text == "e answer"
    assert [entry.token_id for entry in output.result().trace] == tokens


def test_every_scalar_has_the_score_of_its_tokens() -> None:
    text = '{"a":"xy","b":[12]}'
    pieces = ['{"a":"', "x", 'y"', ',"b":[', "1", "2]}"]
    ends, marks = [], []
    for index, piece in enumerate(pieces):
        ends.append((ends[-1] if ends else 0) + len(piece))
        marks.append(TokenMark("sampled", 9, 0.0, -float(2**index)))
    assert "".join(pieces) == text
    scores = {score.pointer: score for score in field_scores(text, 0, ends, marks)}
    assert set(scores) == {"/a", "/b/0"}
    for score in scores.values():
        json.loads(text[score.start : score.end])
    # The quote of "xy" is in the first token, so that one counts for it.
    assert scores["/a"].logprob == -(1 + 2 + 4)
    assert (scores["/b/0"].logprob, scores["/b/0"].num_tokens) == (-(16 + 32), 2)
    assert field_scores(text[:-1], 0, ends, marks) == ()


def test_the_tool_format_is_decided_before_the_engine_sees_it() -> None:
    text = json.dumps({"tools": [{"name": "f"}], "format": "auto"})
    spec = grammar_spec(Constraint("tools", text), "mistral")
    assert json.loads(spec.text)["format"] == "mistral"
    named = json.dumps({"tools": [], "format": "llama"})
    assert grammar_spec(Constraint("tools", named), "mistral").text == named
    assert grammar_spec(Constraint("regex", "a"), "hermes").finish == "cut"
    assert grammar_spec(Constraint("choices", "[]"), "hermes").finish == "valid"
    assert healing_spec(" th", marks=False).heal == " th"
    with pytest.raises(InvalidArgument, match="heal"):
        grammar_spec(Constraint("regex", "a", after="x"), "hermes", heal="y")


@pytest.mark.parametrize(
    ("constraint", "argument"),
    [
        (Constraint("regex", "a\ud800"), "regex"),
        (Constraint("json_schema", "x" * 1_000_001), "json_schema"),
        (Constraint("regex", "a", indent=-1), "indent"),
        (Constraint("regex", "a", retries=99), "retries"),
        (Constraint("regex", "a", fields=(FieldSampling("a"),)), "fields"),
        (Constraint("regex", "a", fields=(FieldSampling("/a", top_p=0.0),)), "top_p"),
        (Constraint("regex", "a", exclude=("x",) * 65), "exclude"),
    ],
)
def test_options_that_cannot_be_used_are_refused(constraint: Constraint, argument: str) -> None:
    with pytest.raises(InvalidArgument, match=argument):
        check_constraint(constraint)
