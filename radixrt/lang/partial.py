"""Reading JSON while it is being written: after every piece, the value so far and what is final.

``PartialJson`` keeps a stack of open containers and works through each character once. A string
shows what it holds so far; a number, ``true``, ``false`` or ``null`` appears when it is known to be
over; a key appears with its value. What is final never changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

_MAX_DEPTH = 500
_SPACE = " \t\n\r"
_ESCAPES = {
    **{'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
}
_LITERALS: dict[str, Any] = {"true": True, "false": False, "null": None}


class Missing:
    """No value yet; distinct from null."""

    def __repr__(self) -> str:
        return "…"

    def __bool__(self) -> bool:
        return False


MISSING = Missing()


@dataclass(slots=True, eq=False)
class Node:
    """A value on its way. ``value`` is plain JSON as far as it is known; of containers ``items``
    are the nodes in it, by key or index, in the order they were begun."""

    kind: str
    value: Any = MISSING
    items: dict[Any, Node] = field(default_factory=dict)
    is_complete: bool = False

    def plain(self) -> Any:
        """Return the value so far as plain JSON; what has not begun is left out."""
        if self.kind == "object":
            shown = {key: item.plain() for key, item in self.items.items()}
            return {key: value for key, value in shown.items() if value is not MISSING}
        if self.kind == "array":
            values = [item.plain() for item in self.items.values()]
            return [value for value in values if value is not MISSING]
        return self.value


class PartialJson:
    """Takes JSON text in pieces. Raises ``ValueError`` for text that is no beginning of JSON."""

    def __init__(self) -> None:
        self.root = Node("unknown")
        self._open: list[Node] = []
        self._state = "value"
        self._scalar: list[str] = []
        self._escape = ""
        self._key = ""
        self._high = ""
        """The first half of a surrogate pair, until the second is there."""
        self._in_key = False

    @property
    def is_complete(self) -> bool:
        return self.root.is_complete

    def feed(self, text: str) -> None:
        """Take the next piece."""
        for char in text:
            self._take(char)
        self._show_string()

    def end(self) -> None:
        """No more comes: a number at the top is over. Raises ``ValueError`` when more is needed."""
        if self._state == "scalar":
            self._end_scalar()
        if not self.root.is_complete:
            raise ValueError("the JSON text is cut short")

    # ------------------------------------------------------------ characters

    def _take(self, char: str) -> None:
        if self._state == "string":
            self._take_in_string(char)
            return
        if self._state == "scalar":
            if char not in ",]}" and char not in _SPACE:
                self._scalar.append(char)
                return
            self._end_scalar()
        if char in _SPACE:
            return
        match self._state:
            case "value" | "first item":
                self._begin(char)
            case "first key" | "key" if char == '"':
                self._state, self._in_key = "string", True
                self._scalar = []
            case "colon" if char == ":":
                self._state = "value"
            case "first key" | "comma" if char == "}" and self._open[-1].kind == "object":
                self._close()
            case "comma" if char == "]" and self._open[-1].kind == "array":
                self._close()
            case "comma" if char == ",":
                self._state = "key" if self._open[-1].kind == "object" else "value"
            case _:
                raise ValueError(f"{char!r} cannot come here in JSON")

    def _begin(self, char: str) -> None:
        if char == "]" and self._state == "first item":
            self._close()
            return
        kinds = {"{": "object", "[": "array", '"': "string"}
        kind = kinds.get(char, "scalar")
        if kind == "scalar" and char not in "-0123456789tfn":
            raise ValueError(f"{char!r} begins no JSON value")
        node = self._new_node(kind)
        self._scalar = []
        match kind:
            case "object":
                self._open.append(node)
                self._state = "first key"
            case "array":
                self._open.append(node)
                self._state = "first item"
            case "string":
                self._open.append(node)
                self._state, self._in_key = "string", False
                node.value = ""
            case _:
                self._open.append(node)
                self._scalar.append(char)
                self._state = "scalar"

    def _new_node(self, kind: str) -> Node:
        node = Node(kind)
        if not self._open:
            self.root = node
            return node
        if len(self._open) >= _MAX_DEPTH:
            raise ValueError(f"JSON nested deeper than {_MAX_DEPTH} levels")
        parent = self._open[-1]
        parent.items[self._key if parent.kind == "object" else len(parent.items)] = node
        return node

    def _close(self) -> None:
        node = self._open.pop()
        node.is_complete = True
        self._state = "comma" if self._open else "over"

    def _end_scalar(self) -> None:
        text = "".join(self._scalar)
        value = _LITERALS[text] if text in _LITERALS else json.loads(text, parse_constant=_refuse)
        self._open[-1].value = value
        self._close()

    # ------------------------------------------------------------ strings

    def _take_in_string(self, char: str) -> None:
        if self._escape:
            self._take_in_escape(char)
        elif char == "\\":
            self._escape = char
        elif char == '"':
            self._put(self._high)
            self._high = ""
            self._end_string()
        elif char < " ":
            raise ValueError("a control character in a string")
        else:
            self._put(self._high + char)
            self._high = ""

    def _take_in_escape(self, char: str) -> None:
        self._escape += char
        if self._escape[1] != "u":
            if char not in _ESCAPES:
                raise ValueError(f"{self._escape!r} is no escape")
            self._put(self._high + _ESCAPES[char])
            self._escape = self._high = ""
            return
        if len(self._escape) > 2 and char not in "0123456789abcdefABCDEF":
            raise ValueError(f"{self._escape!r} is no escape")
        if len(self._escape) == 6:
            unit = chr(int(self._escape[2:], 16))
            self._escape = ""
            self._put_unit(unit)

    def _put_unit(self, unit: str) -> None:
        """Put a code unit of UTF-16; of a pair the first half waits for the second."""
        if self._high and "\udc00" <= unit <= "\udfff":
            pair = (self._high + unit).encode("utf-16-le", "surrogatepass")
            self._put(pair.decode("utf-16-le"))
            self._high = ""
            return
        self._put(self._high)
        self._high = unit if "\ud800" <= unit <= "\udbff" else ""
        if not self._high:
            self._put(unit)

    def _put(self, text: str) -> None:
        if text:
            self._scalar.append(text)

    def _end_string(self) -> None:
        if self._in_key:
            self._key = "".join(self._scalar)
            self._state = "colon"
            return
        self._show_string()
        self._close()

    def _show_string(self) -> None:
        if self._state == "string" and not self._in_key:
            text = "".join(self._scalar)
            self._scalar = [text] if text else []
            self._open[-1].value = text


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
