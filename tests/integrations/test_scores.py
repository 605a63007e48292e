"""Scores of evaluations, on the shipped model: the same numbers as by the language's own way."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import radixrt as rt
from radixrt.errors import InvalidArgument
from radixrt.integrations.scores import Scorer, rolling_windows
from radixrt.protocol import Sampling

REVIEW = "Review: great fun\nSentiment: positive\n\nReview: a dull story\nSentiment:"


@pytest.fixture(scope="module")
def backend() -> Iterator[rt.Runtime]:
    with rt.Runtime() as backend:
        yield backend


@pytest.fixture
def scorer(backend: rt.Runtime) -> Scorer:
    return Scorer(backend.client)


def test_a_continuations_score_is_that_of_a_select(backend: rt.Runtime, scorer: Scorer) -> None:
    choices = [" positive", " negative"]

    @rt.function
    def mood(s):
        s += REVIEW + rt.select("mood", choices=choices)

    state = mood.run(backend=backend)
    meta = state.get_meta_info("mood")
    [context, *options] = scorer.tokenize([REVIEW, *choices])
    scores = scorer.score([(context, option) for option in options])
    for score, entries in zip(scores, meta["input_token_logprobs"], strict=True):
        assert score.logprob == pytest.approx(sum(e[0] for e in entries), abs=0.2)
    likeliest = max(range(2), key=lambda index: scores[index].logprob)
    assert choices[likeliest] == state["mood"]
    assert scores[likeliest].is_greedy
    assert not scores[1 - likeliest].is_greedy


def test_scores_do_not_depend_on_the_cache(backend: rt.Runtime, scorer: Scorer) -> None:
    [context, yes, no] = scorer.tokenize([REVIEW, " positive", " negative"])
    pairs = [(context, yes), (context, no)] * 3
    backend.flush_cache()
    cold = scorer.score(pairs)
    warm = scorer.score(pairs)
    backend.flush_cache()
    assert scorer.score(list(reversed(pairs))) == list(reversed(cold))
    assert warm == cold


def test_what_is_generated_greedily_is_greedy_when_it_is_scored(scorer: Scorer) -> None:
    [prompt] = scorer.tokenize(["Question: What is 2 + 3?\nAnswer:"])
    sampling = Sampling(max_tokens=4, temperature=0.0, stop=("\n",))
    [text] = scorer.generate([(prompt, sampling)])
    [whole] = scorer.tokenize(["Question: What is 2 + 3?\nAnswer:" + text])
    [score] = scorer.score([(prompt, whole[len(prompt) :])])
    assert "5" in text
    assert score.is_greedy


def test_a_text_is_scored_as_the_sum_of_its_parts(scorer: Scorer) -> None:
    """The chain rule, whatever windows it is cut into: here by hand, two of them."""
    [text] = scorer.tokenize(["Maria lives in Lisbon and works as a baker."])
    prefix = scorer.prefix_id
    [whole] = scorer.score([((prefix,), text)])
    half = len(text) // 2
    parts = scorer.score([((prefix,), text[:half]), ((prefix, *text[:half]), text[half:])])
    assert whole.logprob == pytest.approx(sum(part.logprob for part in parts), abs=0.2)
    assert math.isfinite(whole.logprob)


def test_what_is_too_long_loses_its_beginning(scorer: Scorer) -> None:
    [context, continuation] = scorer.tokenize(["word " * 3000, " and"])
    assert len(context) > scorer.max_context
    kept = context[-(scorer.max_context - len(continuation)) :]
    long, short = scorer.score([(context, continuation), (kept, continuation)])
    assert long == short
    [text] = scorer.generate([(context, Sampling(max_tokens=2, temperature=0.0))])
    assert text


def test_the_models_template_writes_a_conversation(scorer: Scorer) -> None:
    conversation = {
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": None,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "template_kwargs": {},
    }
    text = scorer.render(json.dumps(conversation))
    assert text == "<|user|>\nHi<|end|>\n<|assistant|>\n"
    # As text it means the same tokens again.
    [token_ids] = scorer.tokenize([text])
    assert len(token_ids) < len(text) / 2


def test_nothing_can_be_scored_behind_nothing(scorer: Scorer) -> None:
    with pytest.raises(InvalidArgument):
        scorer.score([((), (1,))])
    with pytest.raises(InvalidArgument):
        scorer.generate([((1,), Sampling(max_tokens=1_000_000))])


@given(st.integers(0, 60), st.integers(1, 12))
def test_rolling_windows_predict_every_token_once_with_all_the_context_there_is(
    length: int, max_len: int
) -> None:
    tokens = tuple(range(length))
    windows = rolling_windows(tokens, -1, max_len)
    assert [token for _, predicted in windows for token in predicted] == list(tokens)
    for number, (context, predicted) in enumerate(windows):
        assert context
        assert predicted
        assert len(context) + len(predicted) <= max_len + 1
        # What stands before is what stood before in the text.
        assert (*context, *predicted) == (-1, *tokens)[
            predicted[0] + 1 - len(context) : predicted[-1] + 2
        ]
        if number:  # no window has less context than there is room for
            assert len(context) + len(predicted) == min(max_len + 1, predicted[-1] + 2)
