"""The forms in which models write tool calls, and reading the calls out of a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

FormatName = Literal["hermes", "llama", "mistral"]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How calls are written: ``opening`` call ``closing``, and again after ``between``.

    ``trigger`` is the text by which a model begins, the first part of ``opening``; without one a
    call is an object at the beginning of the answer. ``arguments`` is the key of a call's
    arguments. With ``is_list`` the opening and the closing are around all calls.
    """

    name: FormatName
    trigger: str
    opening: str
    closing: str
    between: str
    arguments: str
    is_list: bool = False


FORMATS: dict[str, ToolFormat] = {
    "hermes": ToolFormat(
        "hermes", "<tool_call>", "<tool_call>\n", "\n</tool_call>", "\n", "arguments"
    ),
    "llama": ToolFormat("llama", "", "", "", "; ", "parameters"),
    "mistral": ToolFormat(
        "mistral", "[TOOL_CALLS]", "[TOOL_CALLS] [", "]", ", ", "arguments", is_list=True
    ),
}


TOOL_MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
"""Texts around calls that are control tokens of some models."""


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call in a text, characters ``[start, end)``; its arguments begin at ``arguments_at``."""

    name: str
    arguments: str
    start: int
    end: int
    arguments_at: int


def format_of_template(template: str) -> FormatName:
    """Return the format that a chat template teaches; Hermes' when it teaches none."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template:
        return "hermes"
    if "<|python_tag|>" in template or "ipython" in template:
        return "llama"
    return "hermes"


def find_calls(text: str, style: ToolFormat) -> list[ParsedCall]:
    """Return the calls of a text in order; text around them is skipped.

    A control token that opens or closes a call may be missing from the text.
    """
    calls: list[ParsedCall] = []
    decoder = json.JSONDecoder()
    at = text.find(style.trigger) if style.trigger and style.trigger in text else 0
    while True:
        at = text.find("{", at)
        if at < 0:
            return calls
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        call = _call(text, value, at, end, style, decoder)
        if call is None:
            at += 1
            continue
        calls.append(call)
        at = end


def _call(
    text: str, value: Any, start: int, end: int, style: ToolFormat, decoder: json.JSONDecoder
) -> ParsedCall | None:
    if not isinstance(value, dict) or set(value) != {"name", style.arguments}:
        return None
    name, arguments = value["name"], value[style.arguments]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    key = text.index(json.dumps(style.arguments), start + len('{"name":'))
    at = text.index("{", key)
    length = decoder.raw_decode(text, at)[1] - at
    return ParsedCall(name, text[at : at + length], start, end, at)
