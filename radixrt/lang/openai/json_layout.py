"""JSON text laid out anew while it arrives, values and their order untouched."""

from __future__ import annotations


class JsonLayout:
    """Rewrites the whitespace of one JSON text: compact, ``spaced`` as Python writes it, or
    ``indent`` blanks a level. ``feed`` takes it in pieces of any size."""

    def __init__(self, *, indent: int | None, spaced: bool) -> None:
        self._indent = indent
        self._after_colon = " " if spaced or indent is not None else ""
        self._after_comma = " " if spaced and indent is None else ""
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self._has_opened = False

    def feed(self, text: str) -> str:
        """Return what the next piece of the text becomes."""
        return "".join(map(self._next, text))

    def _next(self, char: str) -> str:
        if self._is_in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif char == "\\":
                self._is_escaped = True
            elif char == '"':
                self._is_in_string = False
            return char
        if char in " \t\r\n":
            return ""
        if char in "}]":
            self._depth -= 1
            line = "" if self._has_opened else self._line()  # an empty one stays on its line
            self._has_opened = False
            return line + char
        line = self._line() if self._has_opened else ""
        self._has_opened = char in "{["
        if char in "{[":
            self._depth += 1
        elif char == '"':
            self._is_in_string = True
        elif char == ",":
            return f",{self._line()}{self._after_comma}"
        elif char == ":":
            return f":{self._after_colon}"
        return line + char

    def _line(self) -> str:
        if self._indent is None:
            return ""
        return "\n" + " " * (self._indent * self._depth)
