"""Tool calls out of growing text: how it is cut into pieces makes no difference."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixrt.gateway.tool_stream import CallArguments, CallBegin, TextPiece, ToolReader

HERMES = {"name": "hermes", "trigger": "<tool_call>"}
LLAMA = {"name": "llama", "trigger": ""}
MISTRAL = {"name": "mistral", "trigger": "[TOOL_CALLS]"}

texts = st.text(st.characters(codec="utf-8"), max_size=12)
arguments = st.dictionaries(
    texts,
    st.recursive(texts | st.integers(), lambda inner: st.lists(inner, max_size=3)),
    max_size=3,
)
calls = st.lists(st.tuples(texts.filter(bool), arguments), max_size=3)


def written(style: dict[str, Any], calls: list[tuple[str, Any]]) -> str:
    """Return calls as the grammar of a format spells them."""
    key = "parameters" if style["name"] == "llama" else "arguments"
    bodies = [json.dumps({"name": name, key: arguments}) for name, arguments in calls]
    if style["name"] == "hermes":
        return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
    if style["name"] == "mistral":
        return f"[TOOL_CALLS] [{', '.join(bodies)}]" if bodies else ""
    return "; ".join(bodies)


def read(reader: ToolReader, pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    answer, found = "", list[tuple[str, str]]()
    for piece in [*(p for text in pieces for p in reader.feed(text)), *reader.finish()]:
        match piece:
            case TextPiece(text):
                answer += text
            case CallBegin(index, name):
                assert index == len(found)
                found.append((name, ""))
            case CallArguments(index, text):
                assert index == len(found) - 1
                found[index] = (found[index][0], found[index][1] + text)
    return answer, [(name, json.loads(text)) for name, text in found]


@settings(max_examples=150, deadline=None)
@given(
    style=st.sampled_from([HERMES, LLAMA, MISTRAL]),
    calls=calls,
    answer=texts,
    is_free=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_calls_are_read_however_the_text_is_cut(
    style: dict[str, Any],
    calls: list[tuple[str, Any]],
    answer: str,
    is_free: bool,
    cuts: list[int],
) -> None:
    if not is_free or style is LLAMA:
        answer = ""
    if not calls and not is_free:
        return
    text = f"{answer}{written(style, calls)}"
    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    said, found = read(ToolReader(style, free=is_free), pieces)
    assert found == [(name, arguments) for name, arguments in calls]
    assert said == (answer.rstrip() if calls else answer)


@pytest.mark.parametrize("style", [HERMES, MISTRAL, LLAMA])
@pytest.mark.parametrize(
    "text",
    ["", "  ", "no call", "a < b and <tool", "[TOOL_CALL", '{"age": 3}', "{", '{"names": []}',
     '{"name": "Maria", "a": 1}'],
)  # fmt: skip
def test_an_answer_without_calls_is_all_said(style: dict[str, Any], text: str) -> None:
    said, found = read(ToolReader(style, free=True), list(text))
    assert (said, found) == (text, [])


def test_an_answer_is_said_before_the_call_is_over() -> None:
    reader = ToolReader(HERMES, free=True)
    assert reader.feed("Let me see. ") == [TextPiece("Let me see.")]
    assert reader.feed("<tool_") == []
    assert reader.feed('call>\n{"name": "f", "arguments": {"a"') == [
        CallBegin(0, "f"),
        CallArguments(0, '{"a"'),
    ]
    assert reader.feed(": 1}") == [CallArguments(0, ": 1}")]
    assert reader.feed("}\n</tool_call>") == []
