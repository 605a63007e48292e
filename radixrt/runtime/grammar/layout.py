"""JSON schemas as Lark grammars of our own: indented text, and properties in any order.

The engine's own translation writes properties in the schema's order and knows no indentation. Here
objects and arrays are rules with their exact blanks; everything inside them that is no plain object
or array is left to the engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.json_text import resolve
from radixrt.runtime.grammar.lark import json_rule, literal
from radixrt.runtime.grammar.llguidance import json_blanks

MAX_UNORDERED = 64
"""Properties of one object that may come in any order: the engine counts with 64 bits."""

MAX_RULES = 5_000
MAX_INDENTED_DEPTH = 12
"""Levels that are indented exactly; what is deeper is written on one line."""

_ANNOTATIONS = frozenset(
    [
        *("title", "description", "default", "examples", "$schema", "$id", "id", "$comment"),
        *("$defs", "definitions", "readOnly", "writeOnly", "deprecated", "type"),
    ]
)
_PLAIN_OBJECT = _ANNOTATIONS | {"properties", "required", "additionalProperties"}
_PLAIN_ARRAY = _ANNOTATIONS | {"items", "minItems", "maxItems"}


def laid_out(schema: Any, *, indent: int | None, any_order: bool, spaced: bool = False) -> str:
    """Return a Lark grammar of a schema's values.

    ``indent``: None is compact, a number the blanks a level. ``any_order``: properties in any
    order, the required ones all there and none twice; properties that the schema does not list are
    left out. ``spaced``: a blank after commas and colons, where there is no indentation.
    Raises ``GrammarError`` for an object with too many properties.
    """
    return _Layout(schema, indent, any_order, spaced).grammar()


class _Layout:
    def __init__(self, schema: Any, indent: int | None, any_order: bool, spaced: bool) -> None:
        self._root = schema
        self._indent = indent
        self._any_order = any_order
        self._spaced = spaced
        self._lines: list[str] = []
        self._rules: dict[tuple[str, int], str] = {}
        self._definitions = {
            key: schema[key]
            for key in ("$defs", "definitions")
            if isinstance(schema, dict) and key in schema
        }

    def grammar(self) -> str:
        start = self._value(self._root, 0)
        return "\n".join([f"start: {start}", *self._lines]) + "\n"

    def _value(self, schema: Any, depth: int) -> str:
        """Return an expression of the schema's values, ``depth`` levels inside the text."""
        schema = self._resolved(schema)
        is_deep = self._indent is not None and depth >= MAX_INDENTED_DEPTH
        if isinstance(schema, dict) and not is_deep:
            if _is_plain(schema, "object", _PLAIN_OBJECT) and schema.get("properties"):
                return self._rule(schema, depth, self._object)
            if _is_plain(schema, "array", _PLAIN_ARRAY) and isinstance(schema.get("items"), dict):
                return self._rule(schema, depth, self._array)
            if set(schema) <= {"anyOf", "title", "description", "default"} and "anyOf" in schema:
                options = [self._value(option, depth) for option in schema["anyOf"]]
                return "(" + " | ".join(options) + ")"
        return self._name(self._leaf(schema))

    def _leaf(self, schema: Any) -> str:
        if isinstance(schema, dict):
            schema = {**self._definitions, **schema}
        return json_rule(schema, {"lenient": True, **json_blanks(self._spaced)})

    def _resolved(self, schema: Any) -> Any:
        """Follow a reference to a definition of the schema; any other is the engine's."""
        for _ in range(16):
            if not isinstance(schema, dict) or set(schema) - {"$ref", "title", "description"}:
                return schema
            target = resolve(self._root, schema.get("$ref"))
            if target is None:
                return schema
            schema = target
        return schema

    def _rule(self, schema: dict[str, Any], depth: int, write: Callable[..., str]) -> str:
        """Return the name of a rule, written at its first use: so recursion ends."""
        level = 0 if self._indent is None else depth
        key = (json.dumps(schema, sort_keys=True), level)
        if key not in self._rules:
            name = self._rules[key] = f"v{len(self._rules)}"
            if len(self._rules) > MAX_RULES:
                raise GrammarError(f"json_schema: more than {MAX_RULES} rules when laid out")
            index = len(self._lines)
            self._lines.append("")
            self._lines[index] = f"{name}: {write(schema, depth, name)}"
        return self._rules[key]

    def _name(self, expression: str) -> str:
        key = (expression, -1)
        if key not in self._rules:
            self._rules[key] = f"v{len(self._rules)}"
            self._lines.append(f"{self._rules[key]}: {expression}")
        return self._rules[key]

    def _object(self, schema: dict[str, Any], depth: int, name: str) -> str:
        properties = schema["properties"]
        allowed = {key: value for key, value in properties.items() if value is not False}
        missing = set(schema.get("required", ())) - allowed.keys()
        if missing:
            raise GrammarError(
                f"json_schema: {sorted(missing)[0]!r} is required and not listed in properties; "
                "list it to have indent= or any_order="
            )
        if self._any_order and len(allowed) > MAX_UNORDERED:
            raise GrammarError(
                f"json_schema: any_order=True takes at most {MAX_UNORDERED} properties, an object "
                f"has {len(allowed)}"
            )
        required = [key in schema.get("required", ()) for key in allowed]
        pairs = [
            f"{literal(json.dumps(key, ensure_ascii=False) + self._colon())} "
            f"{self._value(value, depth + 1)}"
            for key, value in allowed.items()
        ]
        self._members(name, pairs, required, self._comma(depth))
        opening, closing = literal("{" + self._line(depth + 1)), literal(self._line(depth) + "}")
        empty = "" if any(required) else ' | "{}"'
        first = f"{name}_first" + ("::0x0" if self._any_order else "")
        return f"{opening} {first} {closing}{empty}"

    def _members(self, name: str, pairs: list[str], required: list[bool], comma: str) -> None:
        """Write ``<name>_first``: at least one member, with commas between them."""
        if self._any_order:
            missing = [index for index, needed in enumerate(required) if needed]
            done = _and([f"bit_set({index})" for index in missing])
            first = [f"{pair} {name}_rest::set_bit({i})" for i, pair in enumerate(pairs)]
            rest = [
                f"{comma} {pair} {name}_rest::set_bit({i}) %if bit_clear({i})"
                for i, pair in enumerate(pairs)
            ]
            end = '""' + (f" %if {done}" if done else "")
            self._lines.append(f"{name}_first::_ : " + "\n  | ".join(first))
            self._lines.append(f"{name}_rest::_ : {end}\n  | " + "\n  | ".join(rest))
            return
        last = len(pairs)
        self._lines.append(f'{name}_rest{last}: ""')
        for index in reversed(range(last)):
            here = f"{comma} {pairs[index]} {name}_rest{index + 1}"
            skip = "" if required[index] else f" | {name}_rest{index + 1}"
            self._lines.append(f"{name}_rest{index}: {here}{skip}")
        first = []
        for index in range(last):
            first.append(f"{pairs[index]} {name}_rest{index + 1}")
            if required[index]:
                break
        self._lines.append(f"{name}_first: " + " | ".join(first))

    def _array(self, schema: dict[str, Any], depth: int, name: str) -> str:
        item = self._value(schema["items"], depth + 1)
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        empty = ' | "[]"' if least == 0 else ""
        if most == 0:
            return '"[]"'
        high = "" if most is None else int(most) - 1
        more = f"({self._comma(depth)} {item}){{{max(least - 1, 0)},{high}}}"
        opening, closing = literal("[" + self._line(depth + 1)), literal(self._line(depth) + "]")
        return f"{opening} {item} {more} {closing}{empty}"

    def _line(self, depth: int) -> str:
        return "" if self._indent is None else "\n" + " " * (self._indent * depth)

    def _comma(self, depth: int) -> str:
        is_blank = self._spaced and self._indent is None
        return literal(", " if is_blank else "," + self._line(depth + 1))

    def _colon(self) -> str:
        return ":" if self._indent is None and not self._spaced else ": "


def _is_plain(schema: dict[str, Any], kind: str, keywords: frozenset[str]) -> bool:
    return schema.get("type") == kind and set(schema) <= keywords


def _and(conditions: list[str]) -> str:
    """Join conditions as a balanced tree: the engine's are of two."""
    if len(conditions) <= 1:
        return "".join(conditions)
    middle = len(conditions) // 2
    return f"and({_and(conditions[:middle])}, {_and(conditions[middle:])})"
