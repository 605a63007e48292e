"""Small values under a JSON schema, as the text of one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from radixrt.runtime.grammar.flat import Flat, Flats, kinds_of

PatternText = Callable[[str], str | None]
"""Returns the JSON text of a string under a schema (as JSON text); None when there is none."""

_CHEAPEST_FIRST = ("integer", "number", "string", "boolean", "null", "array", "object")
_STRING = ("pattern", "format", "minLength", "maxLength")
_MOST_DEPTH = 24
_MOST_LENGTH = 4_096


class Smallest:
    """Finds small values for the schemas within ``flats.root``.

    They are proposals: who uses one asks a matcher. ``comma`` and ``colon`` are the separators of
    the text.
    """

    def __init__(
        self, flats: Flats, pattern_text: PatternText, comma: str = ",", colon: str = ":"
    ) -> None:
        self.flats = flats
        self.comma = comma
        self.colon = colon
        self._pattern_text = pattern_text
        self._known: dict[int, str] = {}
        self._kept: list[Any] = []
        self._under_way: set[int] = set()

    def text(self, schema: Any) -> str | None:
        """Return a small value of a schema; None when none was found."""
        key = id(schema)
        known = self._known.get(key)
        if known is not None:
            return known
        if key in self._under_way or len(self._under_way) >= _MOST_DEPTH:
            return None  # a value within itself is never the smallest
        self._under_way.add(key)
        try:
            found = [self.of_flat(flat) for flat in self.flats.of(schema)]
        finally:
            self._under_way.discard(key)
        best = min((text for text in found if text is not None), key=len, default=None)
        if best is not None:
            self._kept.append(schema)
            self._known[key] = best
        return best

    def of_flat(self, flat: Flat) -> str | None:
        """Return a small value of one alternative; None when none was found."""
        self.flats.spend()
        if "const" in flat:
            return self._listed([flat["const"]], flat)
        if isinstance(flat.get("enum"), list):
            return self._listed(flat["enum"], flat)
        kinds = kinds_of(flat)
        for kind in _CHEAPEST_FIRST:
            if kinds is None or kind in kinds:
                found = self._of_kind(kind, flat)
                if found is not None:
                    return found
        return None

    def members(self, flat: Flat, present: dict[str, Any]) -> list[tuple[str, str | None]]:
        """Return (key, value) texts of the properties that an object with the properties
        ``present`` still lacks, in the order of the schema."""
        properties = flat.get("properties") or {}
        required = [name for name in flat.get("required") or () if isinstance(name, str)]
        wanted = frozenset(required)
        names = [name for name in properties if name in wanted]
        names += [name for name in dict.fromkeys(required) if name not in properties]
        found = [
            (name, self.text(property_of(flat, name))) for name in names if name not in present
        ]
        least = flat.get("minProperties", 0)
        if isinstance(least, int):
            spare = (name for name in self._spare_names(flat) if name not in present)
            taken = {name for name, _ in found}
            while len(found) + len(present) < min(least, 64):
                name = next((name for name in spare if name not in taken), None)
                if name is None:
                    break
                found.append((name, self.text(property_of(flat, name))))
        return [(json.dumps(name, ensure_ascii=False), value) for name, value in found]

    def items(self, flat: Flat, num_present: int) -> list[str | None]:
        """Return the items that an array with ``num_present`` items still lacks."""
        least = flat.get("minItems", 0)
        contains = flat.get("contains")
        more: list[str | None] = []
        if contains not in (None, False):
            count = flat.get("minContains", 1)
            more = [self.text(contains)] * min(count if isinstance(count, int) else 1, 64)
        count = min(int(least), _MOST_LENGTH) - num_present if isinstance(least, int | float) else 0
        found = [self.text(item_of(flat, num_present + i)) for i in range(count - len(more))]
        found += more
        if flat.get("uniqueItems") is True:
            found = [_another(text, num_present + i) for i, text in enumerate(found)]
        return found

    def _spare_names(self, flat: Flat) -> list[str]:
        return [*(flat.get("properties") or {}), *(f"{number}" for number in range(64))]

    def _listed(self, values: list[Any], flat: Flat) -> str | None:
        kinds = kinds_of(flat)
        texts = [self._json(value) for value in values if kinds is None or _is_of(value, kinds)]
        return min(texts, key=len, default=None)

    def _json(self, value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(self.comma, self.colon))

    def _of_kind(self, kind: str, flat: Flat) -> str | None:
        match kind:
            case "integer" | "number":
                return number_text(flat, is_integer=kind == "integer")
            case "boolean":
                return "true"
            case "null":
                return "null"
            case "string":
                return self._string(flat)
            case "array":
                items = self.items(flat, 0)
                known = [item for item in items if item is not None]
                return f"[{self.comma.join(known)}]" if len(known) == len(items) else None
        members = self.members(flat, {})
        pairs = [f"{key}{self.colon}{value}" for key, value in members if value is not None]
        return "{" + self.comma.join(pairs) + "}" if len(pairs) == len(members) else None

    def _string(self, flat: Flat) -> str | None:
        least = flat.get("minLength", 0)
        if "pattern" not in flat and "format" not in flat:
            return '"' + "a" * min(int(least), _MOST_LENGTH) + '"'
        asked = {"type": "string"} | {key: flat[key] for key in _STRING if key in flat}
        return self._pattern_text(json.dumps(asked, sort_keys=True))


def property_of(flat: Flat, name: str) -> Any:
    """Return the schema of a property."""
    properties = flat.get("properties") or {}
    if name in properties:
        return properties[name]
    for pattern, schema in (flat.get("patternProperties") or {}).items():
        if pattern in (".*", "") or flat.get("additionalProperties") is False:
            return schema  # most have one pattern alone
    return flat.get("additionalProperties", True)


def item_of(flat: Flat, index: int) -> Any:
    """Return the schema of an item."""
    listed = flat.get("prefixItems")
    items = flat.get("items", True)
    if isinstance(items, list):
        listed, items = items, flat.get("additionalItems", True)
    return listed[index] if isinstance(listed, list) and index < len(listed) else items


def number_text(flat: Flat, *, is_integer: bool) -> str | None:
    """Return the number closest to 0 within the bounds of a schema; None where there is none."""
    try:
        low, high = _bounds(flat, is_integer=is_integer)
        step = Fraction(str(flat["multipleOf"])) if "multipleOf" in flat else None
        if is_integer:
            step = Fraction(1) if step is None else Fraction(math.lcm(step.numerator, 1))
        found = max(low, min(Fraction(0), high))
        if step is not None:
            found = step * (math.ceil(found / step) if found > 0 else math.floor(found / step))
        if not low <= found <= high:
            return None
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        return None
    return str(found.numerator) if found.denominator == 1 else f"{float(found)!r}"


def _bounds(flat: Flat, *, is_integer: bool) -> tuple[Fraction, Fraction]:
    """Return the least and the greatest number that a schema allows, as far as it goes."""
    margin = Fraction(1) if is_integer else Fraction(1, 100)
    low, high = Fraction(-(10**30)), Fraction(10**30)
    for key, is_low in (("minimum", True), ("maximum", False)):
        bound, beyond = flat.get(key), flat.get(f"exclusive{key.capitalize()}")
        if beyond is True and bound is not None:  # as draft 4 has it
            bound, beyond = None, bound
        found = [Fraction(str(bound))] if bound is not None else []
        if beyond is not None and beyond is not False:
            found.append(Fraction(str(beyond)) + (margin if is_low else -margin))
        for value in found:
            low, high = (max(low, value), high) if is_low else (low, min(high, value))
    return low, high


def _another(text: str | None, number: int) -> str | None:
    """Return a value like ``text`` that differs for each number."""
    if text is None or number == 0:
        return text
    if text.lstrip("-").isdigit():
        return str(int(text) + number)
    return f'{text[:-1]}{number}"' if text.startswith('"') else text


def _is_of(value: Any, kinds: list[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, int | float):
        return "number" in kinds or ("integer" in kinds and float(value).is_integer())
    names = {str: "string", list: "array", dict: "object", type(None): "null"}
    return names[type(value)] in kinds
