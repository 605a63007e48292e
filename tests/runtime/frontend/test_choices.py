"""The three scorings of ``select``, on numbers worked out by hand and over the fake engine."""

from __future__ import annotations

import pytest
from frontend_harness import Harness, text

from radixrt.likelihood import (
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood,
)
from radixrt.protocol import Append, Failed, Read, Reply, Select
from radixrt.runtime.wire import Score

# "organ", "organism", and a long word whose later tokens are near certain.
LOGPROBS = [
    [-0.1],
    [-0.1, -0.3],
    [-0.4, -0.25, -0.1, -0.01, -0.01, -0.01, -0.01, -0.01],
]
UNCONDITIONAL = [
    [-9.0],
    [-9.0, -2.0],
    [-9.0, -5.0, -1.0, -0.5, -0.4, -0.2, -0.1, -0.1],
]


def test_the_highest_mean_logprob_wins_when_normalised_by_length() -> None:
    index, scores = token_length_normalized(LOGPROBS)
    assert index == 0
    assert scores == pytest.approx((-0.1, -0.2, -0.1), abs=1e-9)


def test_greedy_compares_position_by_position_and_extends_with_the_mean() -> None:
    # After the tie at the first token "organ" goes on with its mean, -0.1, against -0.3.
    assert greedy_token_selection(LOGPROBS)[0] == 0
    assert greedy_token_selection([[-0.1], [-0.1, -0.05], [-0.4]])[0] == 1
    assert greedy_token_selection([[-2.0, 0.0], [-1.0, -9.0]])[0] == 1


def test_unconditional_subtracts_what_the_option_is_worth_alone() -> None:
    index, scores = unconditional_likelihood(LOGPROBS, UNCONDITIONAL)
    third = sum(a - b for a, b in zip(LOGPROBS[2], [0.0, *UNCONDITIONAL[2][1:]], strict=True)) / 8
    assert scores == pytest.approx((-0.1, (-0.1 - 0.3 + 2.0) / 2, third))
    assert index == (1 if scores[1] > scores[2] else 2)


def test_of_equal_options_the_first_wins() -> None:
    for choose in (token_length_normalized, greedy_token_selection):
        assert choose([[-0.5], [-0.5], [-0.5]])[0] == 0


def test_a_certain_token_counts_as_zero() -> None:
    assert token_length_normalized([[-0.1], [0.0]])[0] == 1


def test_the_branch_goes_on_with_the_chosen_option(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("The answer:"))
    options = (" yes", " no", " what")
    wanted = harness.tokenizer.encode(" no").tolist()
    harness.engine.score = lambda prompt, option: [
        -0.1 if list(option) == wanted else -3.0 for _ in option
    ]
    chosen = client.select(1, options, "token_length_normalized")
    assert chosen.index == 1
    assert [entry.token_id for entry in chosen.logprobs[1]] == wanted
    assert chosen.unconditional == ()
    client.send(Append(1, (text(" indeed"),)), Read(90, 1))
    spans = client.answer(90, Reply).spans
    assert [span.kind for span in spans] == ["text", "chosen", "text"]
    assert "".join(span.text for span in spans) == "The answer: no indeed"


def test_a_selection_is_one_message_to_the_engine(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("x"))
    chosen = client.select(1, ("a", "b", "c", "d"), "unconditional_likelihood")
    (score,) = (m for m in harness.engine.received if isinstance(m, Score))
    assert score.unconditional
    assert score.unconditional_prefix == tuple(harness.tokenizer.start_ids.tolist())
    assert all(option[0].logprob is None for option in chosen.unconditional)


@pytest.mark.parametrize("options", [(), ("a", ""), ("a",) * 5000])
def test_options_that_nothing_can_be_chosen_from(
    harness: Harness, options: tuple[str, ...]
) -> None:
    client = harness.client()
    client.open(1, text("x"))
    client.send(Select(1, 1, options))
    failed = client.answer(1, Failed)
    assert failed.code == "bad_request"
    assert "options" in failed.message
