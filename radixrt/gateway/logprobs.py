"""Log probabilities in the forms of the two OpenAI endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from radixrt.protocol import TokenLogprob

LEAST = -9999.0
"""Stands for minus infinity, which JSON has not."""

MAX_TOP = 128


def _value(logprob: float | None) -> float:
    # None: the only possible token, appended without asking the model.
    return 0.0 if logprob is None else max(logprob, LEAST)


def _entry(token: TokenLogprob) -> dict[str, Any]:
    is_whole = "\ufffd" not in token.text
    return {
        "token": token.text,
        "logprob": _value(token.logprob),
        "bytes": list(token.text.encode()) if is_whole else None,
    }


def chat_logprobs(
    tokens: Sequence[TokenLogprob], tops: Sequence[Sequence[TokenLogprob]]
) -> dict[str, Any]:
    """Return the ``logprobs`` of a chat choice."""
    content = []
    for index, token in enumerate(tokens):
        top = tops[index] if index < len(tops) else ()
        content.append({**_entry(token), "top_logprobs": [_entry(other) for other in top]})
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokens: Sequence[TokenLogprob],
    tops: Sequence[Sequence[TokenLogprob]],
    *,
    begins: bool,
    offset: int = 0,
) -> dict[str, Any]:
    """Return the ``logprobs`` of a completion's choice. ``begins``: the first token has nothing
    before it, so it has no logprob. ``offset``: characters before the first token."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    no_first = begins and bool(tokens)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [
            None if no_first and index == 0 else _value(token.logprob)
            for index, token in enumerate(tokens)
        ],
        "top_logprobs": [
            None
            if no_first and index == 0
            else _top(token, tops[index] if index < len(tops) else ())
            for index, token in enumerate(tokens)
        ],
        "text_offset": offsets,
    }


def _top(token: TokenLogprob, others: Sequence[TokenLogprob]) -> dict[str, float]:
    top: dict[str, float] = {}
    for other in (*others, token):
        # Tokens that are no whole character share a text; the likeliest of them is meant.
        value = _value(other.logprob)
        top[other.text] = max(value, top.get(other.text, LEAST))
    return top
