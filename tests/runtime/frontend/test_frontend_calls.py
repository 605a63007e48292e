"""Generations over the fake engine: text, stops, streaming, n, logprobs, limits."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from frontend_harness import Harness, text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radixrt.protocol import (
    Append,
    Chunk,
    Credit,
    Failed,
    Finished,
    FinishReason,
    Open,
    Part,
    Read,
    Reply,
)
from radixrt.runtime.wire import Abort, Run, unpack_ids


def prompts(harness: Harness) -> list[list[int]]:
    return [unpack_ids(m.token_ids).tolist() for m in harness.engine.received if isinstance(m, Run)]


def branch_text(client, branch: int = 1) -> str:  # type: ignore[no-untyped-def]
    call = next(client.calls)
    client.send(Read(call, branch))
    return "".join(span.text for span in client.answer(call, Reply).spans)


def test_the_branch_goes_on_with_what_was_generated(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("Question: "))
    said = harness.says("what is the fox?")
    first = client.finish(max_tokens=40)
    assert first.outputs[0].text == "what is the fox?"
    assert first.outputs[0].finish_reason == FinishReason("stop", min(harness.tokenizer.end_ids))
    client.send(Append(1, (text(" Answer:"),)))
    client.finish(max_tokens=4)
    before, after = prompts(harness)
    assert after[: len(before)] == before
    assert after[len(before) : len(before) + len(said)] == said
    assert branch_text(client).startswith("Question: what is the fox? Answer:")


def test_the_start_token_comes_once_and_first(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("fox"))
    client.finish(max_tokens=2)
    client.send(Append(1, (text("dog"),)))
    client.finish(max_tokens=2)
    bos = int(harness.tokenizer.start_ids[0])
    assert [ids.count(bos) for ids in prompts(harness)] == [1, 1]
    assert all(ids[0] == bos for ids in prompts(harness))


def test_text_is_tokenized_as_one_piece_however_it_was_appended(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("The quick br"), text("own fo"))
    client.send(Append(1, (text("x jumps"),)))
    client.open(2, text("The quick brown fox jumps"))
    client.finish(1, max_tokens=1)
    client.finish(2, max_tokens=1)
    first, second = prompts(harness)
    assert first == second


def test_text_that_spells_a_special_token_is_ordinary_text(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("say <|end|> and <|eos|>"))
    client.finish(max_tokens=1)
    special = {harness.tokenizer.encode(t, markup=True)[0] for t in ("<|end|>", "<|eos|>")}
    assert not special & set(prompts(harness)[0])


@pytest.mark.parametrize("stop", ["STOP", "TOP str", " stop", "s:"])
def test_a_stop_string_ends_the_text_before_it_and_the_branch_too(
    harness: Harness, stop: str
) -> None:
    said = "words and stop strings: STOP strings and more of it"
    harness.says(said)
    client = harness.client()
    client.open(1, text("Answer: "))
    output = client.finish(max_tokens=60, stop=(stop,)).outputs[0]
    kept = said[: said.index(stop)]
    assert output.text == kept
    assert output.finish_reason == FinishReason("stop", stop)
    assert harness.tokenizer.decode(list(output.token_ids)) == kept
    assert any(isinstance(message, Abort) for message in harness.engine.received)
    client.send(Append(1, (text("!"),)))
    client.finish(max_tokens=1)
    assert branch_text(client).startswith(f"Answer: {kept}!")


def test_the_earliest_stop_wins_and_the_list_may_hold_many(harness: Harness) -> None:
    harness.says("one two three four five")
    client = harness.client()
    client.open(1, text("x"))
    output = client.finish(stop=("five", "three", "two three")).outputs[0]
    assert (output.text, output.finish_reason.matched) == ("one ", "two three")


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [(r"t\w+e", "one two "), (r"[A-Z]", None), (r"f(our|ive)", "one two three ")],
)
def test_a_stop_pattern_ends_the_text_before_its_match(
    harness: Harness, pattern: str, kept: str | None
) -> None:
    harness.says("one two three four five")
    client = harness.client()
    client.open(1, text("x"))
    output = client.finish(stop_regex=(pattern,)).outputs[0]
    assert output.text == (kept or "one two three four five")
    if kept is not None:
        assert output.finish_reason == FinishReason("stop", pattern)


def test_a_stop_string_before_min_tokens_does_not_end_the_text(harness: Harness) -> None:
    harness.says("END one two END three")
    client = harness.client()
    client.open(1, text("x"))
    short = client.finish(stop=("END",), min_tokens=0).outputs[0]
    assert short.text == ""
    client.open(2, text("x"))
    assert client.finish(2, stop=("END",), min_tokens=2).outputs[0].text == "END one two "


def test_a_stop_token_is_no_part_of_the_text_nor_of_the_branch(harness: Harness) -> None:
    said = harness.says("one two three")
    client = harness.client()
    client.open(1, text("x"))
    output = client.finish(stop_token_ids=(said[-1],)).outputs[0]
    assert output.token_ids == tuple(said[:-1])
    assert output.finish_reason == FinishReason("stop", said[-1])


def test_end_tokens_are_ordinary_when_they_are_to_be_ignored(harness: Harness) -> None:
    harness.says("one")
    client = harness.client()
    client.open(1, text("x"))
    output = client.finish(max_tokens=5, ignore_eos=True).outputs[0]
    assert output.finish_reason.type == "length"
    assert len(output.token_ids) == 5
    assert output.text == "one"


def test_a_character_is_never_sent_in_halves(harness: Harness) -> None:
    harness.says("aé漢🎉b")
    client = harness.client()
    client.open(1, text("x"))
    call = client.generate(stream=True, max_tokens=30)
    finished = client.answer(call, Finished)
    assert len(finished.outputs[0].token_ids) >= 10  # the characters are spelled in bytes
    chunks = [m for m in client.take() if isinstance(m, Chunk)]
    assert "".join(chunk.text for chunk in chunks) == "aé漢🎉b"
    assert all("�" not in chunk.text for chunk in chunks)


def test_text_that_could_begin_a_stop_string_is_held_back(harness: Harness) -> None:
    harness.says("yes ST", "AR ST", "OP no")
    client = harness.client()
    client.open(1, text("x"))
    call = client.generate(stream=True, stop=("STOP",))
    finished = client.answer(call, Finished)
    chunks = [m.text for m in client.take() if isinstance(m, Chunk)]
    assert "".join(chunks) == finished.outputs[0].text == "yes STAR "


names = (b"client %d" % number for number in itertools.count())
words = st.sampled_from(["one", " two", "é", "漢字", "🎉", " STOP", "ST", "OP", "END", ".", "\n"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    said=st.lists(words, min_size=1, max_size=12),
    stops=st.lists(st.sampled_from(["STOP", "ND", "字", "two ST", ".\n"]), max_size=2, unique=True),
    tokens_a_step=st.integers(1, 5),
    credits=st.lists(st.integers(0, 3), min_size=1, max_size=5),
)
def test_chunks_joined_are_the_final_text_and_tokens(
    harness: Harness, said: list[str], stops: list[str], tokens_a_step: int, credits: list[int]
) -> None:
    client = harness.client(next(names))
    harness.engine.tokens_a_step = tokens_a_step
    harness.says("".join(said))
    client.open(1, text("x"))
    call = client.generate(
        stream=True, credit=credits[0], stop=tuple(stops), max_tokens=200, return_logprob=True
    )
    for more in credits[1:]:
        harness.step()
        client.send(Credit(call, more))
    finished = client.answer(call, Finished)
    chunks = [m for m in client.take() if isinstance(m, Chunk)]
    output = finished.outputs[0]
    whole = "".join(said)
    cuts = [whole.find(stop) for stop in stops if stop in whole]
    assert output.text == (whole[: min(cuts)] if cuts else whole)
    assert "".join(chunk.text for chunk in chunks) == output.text
    assert tuple(i for chunk in chunks for i in chunk.token_ids) == output.token_ids
    assert tuple(p for chunk in chunks for p in chunk.logprobs) == output.logprobs
    assert len(chunks) <= sum(credits) + 1


def test_without_credit_text_is_merged_into_the_next_chunk(harness: Harness) -> None:
    harness.says("one two three four five")
    client = harness.client()
    client.open(1, text("x"))
    call = client.generate(stream=True, credit=1)
    harness.step()
    harness.step()
    harness.step()
    assert sum(isinstance(m, Chunk) for m in client.take()) == 1
    client.send(Credit(call, 1))
    (merged,) = client.take()
    assert isinstance(merged, Chunk)
    assert len(merged.token_ids) == 2


def test_credit_that_comes_before_its_call_begins_counts(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("x"))
    client.generate(max_tokens=3)
    call = client.generate(max_tokens=5, stream=True, credit=0, ignore_eos=True)
    client.send(Credit(call, 2))
    client.answer(call, Finished)
    assert sum(isinstance(m, Chunk) for m in client.take()) == 3  # two and the last one


def test_n_outputs_share_a_prompt_and_the_branch_goes_on_with_the_first(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("fox "))
    counter = iter(range(1000))
    harness.engine.reply = lambda ids, n: 20 + next(counter) % 50
    finished = client.finish(n=3, max_tokens=4, seed=7)
    assert len(finished.outputs) == 3
    runs = [m for m in harness.engine.received if isinstance(m, Run)]
    assert len({run.token_ids for run in runs}) == 1
    assert len({run.sampling.seed for run in runs}) == 3
    assert finished.usage.completion_tokens == 12
    client.finish(max_tokens=1)
    ids = prompts(harness)
    assert tuple(ids[-1][len(ids[0]) :]) == finished.outputs[0].token_ids
    assert len(harness.engine.leases) == 1  # those of the other outputs ended with the call


def test_logprobs_carry_their_tokens_texts(harness: Harness) -> None:
    said = harness.says("one two")
    client = harness.client()
    client.open(1, text("The fox"))
    finished = client.finish(return_logprob=True, top_logprobs_num=2, logprob_start_len=0)
    output = finished.outputs[0]
    assert [entry.token_id for entry in output.logprobs] == [*said, min(harness.tokenizer.end_ids)]
    assert "".join(entry.text for entry in output.logprobs[:-1]) == "one two"
    assert all(len(top) == 2 for top in output.top_logprobs)
    assert finished.prompt_logprobs[0].logprob is None
    assert [entry.token_id for entry in finished.prompt_logprobs] == prompts(harness)[0]


def test_usage_and_spans_tell_what_came_from_the_cache(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("The quick brown fox"))
    harness.says("one")
    cold = client.finish().usage
    assert (cold.cached_tokens, cold.computed_tokens) == (0, cold.prompt_tokens)
    client.open(2, text("The quick brown fox"))
    warm = client.finish(2).usage
    assert warm.cached_tokens == warm.prompt_tokens - 1
    call = next(client.calls)
    client.send(Read(call, 2))
    spans = client.answer(call, Reply).spans
    assert [span.kind for span in spans] == ["text", "generated"]
    assert spans[0].cached_tokens == warm.cached_tokens


BAD = {
    "max_tokens": -1,
    "min_tokens": 999,
    "n": 0,
    "temperature": -1.0,
    "top_p": 0.0,
    "top_k": -1,
    "min_p": 1.5,
    "frequency_penalty": 3.0,
    "presence_penalty": -3.0,
    "repetition_penalty": 0.0,
    "logit_bias": ((10**6, 1.0),),
    "seed": -1,
    "stop": ("",),
    "stop_token_ids": (-5,),
    "stop_regex": ("(",),
    "top_logprobs_num": 3,
    "logprob_start_len": -2,
}


@pytest.mark.parametrize("name", BAD)
def test_a_value_that_cannot_be_used_is_refused_by_name(harness: Harness, name: str) -> None:
    client = harness.client()
    client.open(1, text("x"))
    failed = client.failure(client.generate(**{name: BAD[name]}))
    assert failed.code == "bad_request"
    assert failed.message.startswith(name)
    assert not harness.engine.running


def test_not_a_number_is_refused_too(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("x"))
    assert client.failure(client.generate(temperature=math.nan)).code == "bad_request"


def test_a_pattern_that_takes_too_long_fails_its_call_only(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("x"))
    client.open(2, text("y"))
    harness.says("a" * 60)
    slow = client.generate(1, stop_regex=("(a|aa)+(a|b)+$(?!a)b",), max_tokens=80)
    good = client.generate(2, max_tokens=80)
    harness.run()
    answers = {m.call: m for m in client.take() if isinstance(m, Failed | Finished)}
    assert isinstance(answers[good], Finished)
    answer = answers[slow]
    assert isinstance(answer, Finished) or answer.code == "bad_request"


def test_a_prompt_over_the_context_is_refused_with_the_numbers(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("fox " * 30))
    failed = client.failure(client.generate(max_tokens=500))
    assert failed.code == "too_long"
    assert "500" in failed.message
    assert "512" in failed.message
    assert "lower max_tokens to at most" in failed.message


def test_a_branch_that_outgrows_the_context_fails_where_it_does(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("fox dog " * 400))
    failed = client.failure(client.generate())
    assert failed.code == "too_long"


def test_an_empty_branch_generates_from_the_start_token(harness: Harness) -> None:
    client = harness.client()
    client.open(1)
    client.finish(max_tokens=2)
    assert prompts(harness)[0] == harness.tokenizer.start_ids.tolist()


def test_tokens_are_taken_as_they_are(harness: Harness) -> None:
    client = harness.client()
    client.send(Open(1), Append(1, (Part("tokens", token_ids=(40, 41, 42)),)))
    client.finish(max_tokens=1)
    assert prompts(harness)[0] == [40, 41, 42]


def test_answers_are_valid_json_whatever_the_numbers(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("x"))
    assert json.dumps(client.stats())
