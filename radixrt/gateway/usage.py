"""Token counts and reasons in answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from radixrt.protocol import Finished, FinishReason, Sampling

_ENDS = {"stop": "stop", "length": "length", "abort": "abort"}


def usage_of(finished: Iterable[Finished], num_reasoning: int = 0) -> dict[str, Any]:
    """Return the ``usage`` of a request, of whose tokens ``num_reasoning`` were reasoning."""
    prompt = cached = completion = forced = 0
    for answer in finished:
        prompt += answer.usage.prompt_tokens
        cached += answer.usage.cached_tokens
        completion += answer.usage.completion_tokens
        forced += answer.usage.forced_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"forced_tokens": forced, "reasoning_tokens": num_reasoning},
    }


def finish_reason(reason: FinishReason) -> str:
    """Return OpenAI's word for why a text ended."""
    return _ENDS[reason.type]


def stop_reason(reason: FinishReason, sampling: Sampling) -> str | int | None:
    """Return what ended a text, of what the request named; vLLM's extension."""
    matched = reason.matched
    if isinstance(matched, int) and matched not in sampling.stop_token_ids:
        return None
    return matched
