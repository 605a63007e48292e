"""The outline of a JSON text that is not complete: what is open, and what is there already."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from radixrt.runtime.grammar.json_text import MAX_DEPTH

Tail = Literal["value", "first key", "key", "in key", "colon", "string", "scalar", "after"]
"""What the end of a text is: a value is to come, a key is to come after ``{`` or after a comma, a
key or what is between it and its value has begun, a string or another scalar has begun (a number
may be complete), a value is complete."""

COMPLEX = object()
"""Stands for a complete object or array."""

_BLANKS = b" \t\r\n"
_DELIMITERS = b",]} \t\r\n"


@dataclass(slots=True)
class Open:
    """An object or array that is open: its complete values so far, by key or index, and the key of
    the value that is being written or comes next."""

    is_array: bool
    values: dict[str | int, Any] = field(default_factory=dict)
    key: str | int | None = None


class Outline(NamedTuple):
    """``levels`` from the outside to the inside; ``rest`` is the scalar that has begun, after its
    quote if it has one."""

    levels: list[Open]
    tail: Tail
    rest: bytes


def outline(text: bytes) -> Outline | None:
    """Read a text that is valid as far as it goes; None where it is nested too deeply or none."""
    levels: list[Open] = []
    tail: Tail = "value"
    at, size = 0, len(text)
    while at < size:
        byte = text[at]
        level = levels[-1] if levels else None
        if byte in _BLANKS:
            at += 1
        elif byte in b"{[":
            if len(levels) >= MAX_DEPTH:
                return None
            is_array = byte == 0x5B
            levels.append(Open(is_array, key=0 if is_array else None))
            tail = "value" if is_array else "first key"
            at += 1
        elif byte in b"}]":
            if level is None:
                return None
            levels.pop()
            tail = _complete(levels, COMPLEX)
            at += 1
        elif byte == 0x2C:
            if level is None:
                return None
            tail = "value" if level.is_array else "key"
            level.key = len(level.values) if level.is_array else None
            at += 1
        elif byte == 0x3A:
            tail = "value"
            at += 1
        elif byte == 0x22:
            is_key = tail in ("first key", "key")
            end = _string_end(text, at + 1)
            if end < 0:
                return Outline(levels, "in key" if is_key else "string", text[at + 1 :])
            try:
                value = json.loads(text[at : end + 1], strict=False)
            except ValueError:
                return None
            if is_key and level is not None:
                level.key = value
                tail = "colon"
            else:
                tail = _complete(levels, value)
            at = end + 1
        else:
            end = at
            while end < size and text[end] not in _DELIMITERS:
                end += 1
            if end == size:
                return Outline(levels, "scalar", text[at:])
            try:
                tail = _complete(levels, json.loads(text[at:end]))
            except ValueError:
                return None
            at = end
    return Outline(levels, tail, b"")


def _complete(levels: list[Open], value: Any) -> Tail:
    if levels and levels[-1].key is not None:
        levels[-1].values[levels[-1].key] = value
    return "after"


def _string_end(text: bytes, at: int) -> int:
    """Return where the quote is that ends a string; -1 when it has none yet."""
    while True:
        end = text.find(b'"', at)
        if end < 0:
            return -1
        if _num_before(text, end) % 2 == 0:
            return end
        at = end + 1


def to_end_of_string(rest: bytes) -> bytes:
    """Return what has to come before the quote, at least, of a string that has begun: the end of a
    character or of an escape."""
    for back in range(1, min(4, len(rest) + 1)):
        byte = rest[-back]
        if byte >= 0xC0:
            needed = (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) - back
            if needed <= 0:
                break
            first = {0xE0: 0xA0, 0xF0: 0x90}.get(byte, 0x80) if back == 1 else 0x80
            return bytes([first]) + b"\x80" * (needed - 1)
        if byte < 0x80:
            break
    at = rest.rfind(b"\\")
    if at < 0 or (_num_before(rest, at) % 2):
        return b""
    escape = rest[at + 1 :]
    if not escape:
        return b"n"
    if escape[:1] != b"u" or len(escape) >= 5:
        return b""
    return b"0" * (5 - len(escape))


def _num_before(rest: bytes, at: int) -> int:
    """Return how many backslashes are directly before a byte."""
    num = 0
    while at - 1 - num >= 0 and rest[at - 1 - num] == 0x5C:
        num += 1
    return num
