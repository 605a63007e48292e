"""What a constrained output tells beside its text: traces, scores of fields, tool calls."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from radixrt.protocol import FieldScore, TokenTrace, ToolCall
from radixrt.runtime.grammar.json_text import locate, pointer
from radixrt.runtime.grammar.tool_calls import FORMATS, find_calls
from radixrt.runtime.tokenizer import Tokenizer
from radixrt.runtime.wire import TokenMark


def token_traces(
    token_ids: Sequence[int], marks: Sequence[TokenMark], tokenizer: Tokenizer
) -> tuple[TokenTrace, ...]:
    """Return the trace of tokens that have a mark each."""
    return tuple(
        TokenTrace(
            token_id,
            tokenizer.token_text(token_id),
            mark.kind,
            mark.allowed,
            mark.removed,
            mark.logprob,
        )
        for token_id, mark in zip(token_ids, marks, strict=False)
    )


def field_scores(
    text: str, begin: int, ends: Sequence[int], marks: Sequence[TokenMark]
) -> tuple[FieldScore, ...]:
    """Return the score of every scalar of the JSON value that begins at character ``begin``.

    ``ends[i]`` is where token ``i`` ends in the text. A token that spells parts of two fields
    counts for both. A text that is no JSON value has no fields.
    """
    try:
        located = locate(text[begin:])
    except (ValueError, IndexError, RecursionError):
        return ()
    scores = []
    for path in located.scalars:
        start, end = (begin + at for at in located.spans[path])
        first = bisect_right(ends, start)
        last = min(bisect_left(ends, end) + 1, len(marks))
        logprob = sum(mark.logprob for mark in marks[first:last])
        scores.append(FieldScore(pointer(path), start, end, logprob, max(last - first, 0)))
    return tuple(scores)


def tool_calls(text: str, tool_format: str) -> tuple[ToolCall, ...]:
    """Return the tool calls in a text."""
    style = FORMATS.get(tool_format)
    if style is None:
        return ()
    return tuple(
        ToolCall(call.name, call.arguments, call.start, call.end)
        for call in find_calls(text, style)
    )
