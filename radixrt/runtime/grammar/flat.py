"""JSON schemas without references and combinations: what a value may be, one alternative each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from radixrt.runtime.grammar.json_text import resolve

Flat = dict[str, Any]
"""A schema without ``$ref``, ``allOf``, ``anyOf`` and ``oneOf`` at its top."""

MOST_OPTIONS = 16
"""Alternatives of one schema that are looked at."""

_COMBINED = ("properties", "$ref", "allOf", "anyOf", "oneOf")
_MOST_DEPTH = 24
_MOST_KEPT = 20_000
_LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains")
_SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


class TooMuch(Exception):
    """More schemas would have to be looked at than may be."""


class Flats:
    """The alternatives of the schemas within ``root``, which does not change.

    What they say is taken together without regard to what cannot be true at once, so they are where
    to look for values, not what values are. Looking at more than ``allowance`` schemas raises
    ``TooMuch``; whoever begins a task sets it.
    """

    def __init__(self, root: Any) -> None:
        self.root = root
        self.allowance = 0
        self._known: dict[int, list[Flat]] = {}
        self._kept: list[Any] = []  # known by their identity, so they have to stay

    def of(self, schema: Any, depth: int = 0) -> list[Flat]:
        """Return the alternatives of a schema; none where it allows nothing or is too deep."""
        if schema is True or schema == {}:
            return [{}]
        if not isinstance(schema, dict) or depth > _MOST_DEPTH:
            return []
        known = self._known.get(id(schema))
        if known is None:
            self.spend()
            known = self._flatten(schema, depth)
            if len(self._kept) > _MOST_KEPT:
                self._known, self._kept = {}, []
            self._kept.append(schema)
            self._known[id(schema)] = known
        return known

    def spend(self) -> None:
        """Count one schema that is looked at."""
        self.allowance -= 1
        if self.allowance < 0:
            raise TooMuch

    def _flatten(self, schema: dict[str, Any], depth: int) -> list[Flat]:
        rest = {key: value for key, value in schema.items() if key not in _COMBINED}
        parts = [[rest]]
        for key, value in schema.items():  # the order of properties is that of the keywords
            if key == "properties":
                parts.append([{key: value}])
            elif key == "$ref" and isinstance(value, str):
                parts.append(self.of(resolve(self.root, value), depth + 1))
            elif key == "allOf" and isinstance(value, list):
                parts += [self.of(item, depth + 1) for item in value]
            elif key in ("anyOf", "oneOf") and isinstance(value, list):
                options = [self.of(item, depth + 1) for item in value[:MOST_OPTIONS]]
                parts.append([flat for option in options for flat in option])
        found = []
        for combination in itertools.islice(itertools.product(*parts), MOST_OPTIONS):
            flat: Flat | None = combination[0]
            for other in combination[1:]:
                flat = None if flat is None else _merged(flat, other)
            if flat is not None:
                found.append(flat)
        return found


def kinds_of(flat: Flat) -> list[str] | None:
    """Return the types that a schema names, None when it names none."""
    kinds = flat.get("type")
    return [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else None


def _merged(one: Flat, other: Flat) -> Flat | None:
    """Return both at once; None where they name no common type."""
    new = {**one, **other}
    mine, theirs = kinds_of(one), kinds_of(other)
    if mine is not None and theirs is not None:
        common = [kind for kind in mine if kind in theirs or _is_wider(kind, theirs)]
        common += [kind for kind in theirs if kind not in mine and _is_wider(kind, mine)]
        if not common:
            return None
        new["type"] = common
    if isinstance(one.get("required"), list) and isinstance(other.get("required"), list):
        new["required"] = [*dict.fromkeys([*one["required"], *other["required"]])]
    if isinstance(one.get("enum"), list) and isinstance(other.get("enum"), list):
        new["enum"] = [value for value in one["enum"] if value in other["enum"]]
    for key in ("properties", "patternProperties"):
        if isinstance(one.get(key), dict) and isinstance(other.get(key), dict):
            new[key] = {**one[key], **other[key]}
            for name in one[key].keys() & other[key].keys():
                new[key][name] = {"allOf": [one[key][name], other[key][name]]}
    if isinstance(one.get("items"), dict) and isinstance(other.get("items"), dict):
        new["items"] = {"allOf": [one["items"], other["items"]]}
    if one.get("additionalProperties") is False:
        new["additionalProperties"] = False
    choose: Callable[[Any, Any], Any]
    for keys, choose in ((_LARGER, max), (_SMALLER, min)):
        for key in keys:
            values = [flat[key] for flat in (one, other) if isinstance(flat.get(key), int | float)]
            if len(values) == 2:
                new[key] = choose(*values)
    return new


def _is_wider(kind: str, others: list[str]) -> bool:
    return kind == "integer" and "number" in others
