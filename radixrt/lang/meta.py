"""What ``get_meta_info`` returns, under SGLang's key names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from radixrt.lang.choices import greedy_token_selection, unconditional_likelihood_normalized
from radixrt.lang.nodes import Choice
from radixrt.lang.reading import split_reasoning
from radixrt.protocol import (
    Chosen,
    Chunk,
    Constraint,
    Finished,
    FinishReason,
    Output,
    TokenLogprob,
    Usage,
)

LogprobTuple = tuple[float | None, int, str | None]
"""(log probability, token id, text)."""


def usage_info(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "computed_tokens": usage.computed_tokens,
        "evicted_tokens": usage.evicted_tokens,
        "completion_tokens": usage.completion_tokens,
        "forced_tokens": usage.forced_tokens,
    }


def generation_info(
    finished: Finished,
    *,
    logprobs: bool,
    top_logprobs: bool,
    with_text: bool,
    constraint: Constraint | None = None,
) -> dict[str, Any] | list[dict[str, Any]]:
    """The meta info of a generation; of ``n > 1`` outputs a list of ``n``."""
    infos = []
    for output in finished.outputs:
        info: dict[str, Any] = usage_info(finished.usage)
        if len(finished.outputs) > 1:
            info["completion_tokens"] = len(output.token_ids)
        info["finish_reason"] = _finish_reason(output)
        if logprobs:
            info["input_token_logprobs"] = _tuples(finished.prompt_logprobs, with_text)
            info["output_token_logprobs"] = _tuples(output.logprobs, with_text)
        if top_logprobs:
            info["output_top_logprobs"] = [_tuples(top, with_text) for top in output.top_logprobs]
        if constraint is not None:
            info |= _constraint_info(output, constraint)
        infos.append(info)
    return infos[0] if len(infos) == 1 else infos


def _constraint_info(output: Output, constraint: Constraint) -> dict[str, Any]:
    """What a constraint came to. ``confidence`` is the mean probability (geometric) of a field's
    tokens under the constraint."""
    info: dict[str, Any] = {
        "attempts": output.attempts,
        "warnings": list(output.warnings),
        "enforcement": [
            {"pointer": item.pointer, "keyword": item.keyword, "status": item.status}
            for item in output.enforcement
        ],
        "fields": {
            score.pointer: {
                "logprob": score.logprob,
                "num_tokens": score.num_tokens,
                "confidence": math.exp(score.logprob / max(score.num_tokens, 1)),
                "text": output.text[score.start : score.end],
            }
            for score in output.field_scores
        },
    }
    if output.tool_format:
        info["tool_format"] = output.tool_format
    if constraint.after:
        info["reasoning"] = split_reasoning(output.text, constraint.after)[0]
    return info


def partial_info(chunks: Sequence[Chunk], *, logprobs: bool, with_text: bool) -> dict[str, Any]:
    """The meta info of a generation that still runs, from what was streamed so far."""
    info: dict[str, Any] = {
        "completion_tokens": sum(len(chunk.token_ids) for chunk in chunks),
        "finish_reason": None,
    }
    if logprobs:
        so_far = [logprob for chunk in chunks for logprob in chunk.logprobs]
        info["output_token_logprobs"] = _tuples(so_far, with_text)
    return info


def selection_info(chosen: Chosen, choice: Choice) -> dict[str, Any]:
    """The meta info of a selection: lists have one entry an option, in the options' order."""
    tokens = [_tuples(option, True) for option in chosen.logprobs]
    info: dict[str, Any] = {
        **usage_info(chosen.usage),
        "normalized_prompt_logprobs": [_mean(_values(option)) for option in chosen.logprobs],
        "input_token_logprobs": tokens,
        "output_token_logprobs": [[] for _ in tokens],
        "scores": list(chosen.scores),
    }
    if choice.method is greedy_token_selection:
        info["greedy_logprob_matrix"] = _matrix([_values(option) for option in chosen.logprobs])
    if choice.method is unconditional_likelihood_normalized:
        info["unconditional_token_logprobs"] = [
            _tuples(option, True) for option in chosen.unconditional
        ]
        info["normalized_unconditional_prompt_logprobs"] = list(chosen.scores)
    return info


def _finish_reason(output: Output) -> dict[str, Any]:
    reason: FinishReason = output.finish_reason
    if reason.type == "length":
        return {"type": "length", "length": len(output.token_ids)}
    return {"type": reason.type, "matched": reason.matched}


def _tuples(logprobs: Sequence[TokenLogprob], with_text: bool) -> list[LogprobTuple]:
    return [
        (entry.logprob, entry.token_id, entry.text if with_text else None) for entry in logprobs
    ]


def _values(logprobs: Sequence[TokenLogprob]) -> list[float]:
    # A certain token has a logprob of exactly 0 and counts; only None has no value.
    return [entry.logprob for entry in logprobs if entry.logprob is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("-inf")


def _matrix(options: Sequence[list[float]]) -> list[list[float]]:
    width = max((len(option) for option in options), default=0)
    return [[*option, *[_mean(option)] * (width - len(option))] for option in options]
