"""The three ways to choose an option by its tokens' log probabilities, as SGLang defines them.

Each takes one list of logprobs an option (natural log) and returns the index of the chosen option
and the score of every option. Of equal options the first wins.
"""

from __future__ import annotations

from collections.abc import Sequence

from radixrt.protocol import Method

Logprobs = Sequence[Sequence[float]]
Choice = tuple[int, tuple[float, ...]]


def choose(method: Method, logprobs: Logprobs, unconditional: Logprobs) -> Choice:
    """Return index and scores by ``method``; ``unconditional`` matters to one of them only."""
    if method == "greedy_token_selection":
        return greedy_token_selection(logprobs)
    if method == "unconditional_likelihood":
        return unconditional_likelihood(logprobs, unconditional)
    return token_length_normalized(logprobs)


def token_length_normalized(logprobs: Logprobs) -> Choice:
    """The highest mean logprob."""
    scores = tuple(_mean(option) for option in logprobs)
    return _argmax(scores), scores


def greedy_token_selection(logprobs: Logprobs) -> Choice:
    """Position by position only the options with the highest logprob stay, until one is left. An
    option that has ended goes on with its mean. A score is the logprob an option was last compared
    by."""
    width = max(len(option) for option in logprobs)
    means = [_mean(option) for option in logprobs]

    def at(option: int, position: int) -> float:
        row = logprobs[option]
        return row[position] if position < len(row) else means[option]

    remaining = list(range(len(logprobs)))
    scores = [at(option, 0) for option in remaining]
    for position in range(width):
        for option in remaining:
            scores[option] = at(option, position)
        best = max(scores[option] for option in remaining)
        remaining = [option for option in remaining if scores[option] == best]
        if len(remaining) == 1:
            break
    return remaining[0], tuple(scores)


def unconditional_likelihood(logprobs: Logprobs, unconditional: Logprobs) -> Choice:
    """The highest mean of logprob minus logprob without the branch before; nothing comes before the
    first token of an option then, so its unconditional logprob counts as 0."""
    scores = tuple(
        _mean([a - (b if i else 0.0) for i, (a, b) in enumerate(zip(with_, without, strict=True))])
        for with_, without in zip(logprobs, unconditional, strict=True)
    )
    return _argmax(scores), scores


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _argmax(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)
