"""Reading tool calls out of a text that grows: what is answer, which call, which arguments."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

_NAME = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(rf'\{{\s*"name"\s*:\s*({_NAME})\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)')
_BEGINNING = '{"name":'
_PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True, slots=True)
class TextPiece:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """Call ``index`` begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of call ``index``: JSON text, as it was generated."""

    index: int
    text: str


Piece = TextPiece | CallBegin | CallArguments


class ToolReader:
    """Takes a generated text in pieces; gives what it says in pieces.

    The text was generated under a constraint of tools, so a call is spelled as its format has it;
    the pieces of one call's arguments make the JSON text of an object. Blanks between an answer and
    the call after it are no part of the answer.
    """

    def __init__(self, style: dict[str, Any], *, free: bool) -> None:
        """``style``: the format as the runtime describes it. ``free``: an answer may come first, or
        instead."""
        self._triggers = [mark for mark in (style.get("trigger"), _PYTHON_TAG) if mark]
        # Without a mark before it, a call is an object at the very beginning.
        self._object_first = free and not style.get("trigger")
        self._state: Literal["text", "between", "arguments"] = "text" if free else "between"
        self._held = ""
        self._is_first = True
        self._depth = 0
        self._in_string = self._escaped = False
        self.num_calls = 0

    def feed(self, text: str) -> list[Piece]:
        """Take more of the text."""
        self._held += text
        pieces: list[Piece] = []
        while True:
            before = (self._state, len(self._held))
            match self._state:
                case "text":
                    self._read_text(pieces)
                case "between":
                    self._read_head(pieces)
                case "arguments":
                    self._read_arguments(pieces)
            if (self._state, len(self._held)) == before:
                return pieces

    def finish(self) -> list[Piece]:
        """The text is over: return what was held back in case it became a call."""
        held, self._held = self._held, ""
        if not held or self.num_calls:
            return []
        return [TextPiece(held)]

    def _read_text(self, pieces: list[Piece]) -> None:
        held = self._held
        if self._object_first and self._is_first:
            start = held.lstrip()
            if not start:
                return
            if _could_be_call(start):
                self._held, self._state = start, "between"
                return
        found = [(at, mark) for mark in self._triggers if (at := held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            self._say(held[:at].rstrip(), pieces)
            self._held = held[at + len(mark) :]
            self._state = "between"
            return
        end = len(held) - max(overlap(held, mark) for mark in self._triggers)
        end = len(held[:end].rstrip())
        self._say(held[:end], pieces)
        self._held = held[end:]

    def _say(self, text: str, pieces: list[Piece]) -> None:
        if text:
            self._is_first = False
            pieces.append(TextPiece(text))

    def _read_head(self, pieces: list[Piece]) -> None:
        at = self._held.find("{")
        if at < 0:
            return
        head = _HEAD.match(self._held, at)
        if head is None:
            if not self.num_calls and self._object_first and not _could_be_call(self._held[at:]):
                self._object_first, self._state = False, "text"  # an answer that is an object
            return
        pieces.append(CallBegin(self.num_calls, json.loads(head.group(1))))
        self._held = self._held[head.end() :]
        self._state = "arguments"
        self._depth = 0

    def _read_arguments(self, pieces: list[Piece]) -> None:
        held = self._held
        end = self._end_of_value(held)
        text = held if end is None else held[:end]
        if text:
            pieces.append(CallArguments(self.num_calls, text))
        if end is None:
            self._held = ""
            return
        # What closes the call itself stands before the next one begins.
        self._held = held[end:]
        self._state = "between"
        self.num_calls += 1

    def _end_of_value(self, text: str) -> int | None:
        """Return where the arguments end in the next piece of them; None when later."""
        for index, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        return None


def _could_be_call(text: str) -> bool:
    """Whether a text is the beginning of a call, as far as it goes."""
    compact = text[: 2 * len(_BEGINNING)].replace(" ", "")
    return compact.startswith(_BEGINNING) or _BEGINNING.startswith(compact)


def overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of ``text`` may be the beginning of ``mark``."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
