"""How a JSON text can end, told from its schema.

A search over masks does not know which keys are still required, which of the keys that may come
costs nothing, or how long a value takes. The schema does. What it says is a proposal: whoever asks
lets a matcher try it, so it need not be exact where a schema's alternatives are entangled.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from radixrt.runtime.grammar.flat import Flat, Flats, TooMuch
from radixrt.runtime.grammar.partial_json import (
    COMPLEX,
    Open,
    Outline,
    outline,
    to_end_of_string,
)
from radixrt.runtime.grammar.smallest import PatternText, Smallest, item_of, property_of

ALLOWANCE = 2_000
"""Schemas that are looked at for one text."""

MOST_PROPOSALS = 8
"""Ends that are proposed for one text."""

_MOST_OPTIONS = 4
"""Alternatives of one level that are told apart."""

_NOT_TOLD = (
    TooMuch,
    RecursionError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
)
"""What a schema leads to that is too large, or none in some place."""

_LITERALS = (b"true", b"false", b"null")


class Proposal(NamedTuple):
    """``text`` ends a JSON text, or, if not ``is_whole``, only goes on with it, up to something
    that the schema does not tell."""

    text: bytes
    is_whole: bool


class Completer:
    """Proposes ends of the texts under one schema, written with the separators ``comma`` and
    ``colon``. Not safe for use from two threads at once."""

    def __init__(
        self, schema: Any, pattern_text: PatternText, comma: str = ",", colon: str = ":"
    ) -> None:
        self._flats = Flats(schema)
        self._smallest = Smallest(self._flats, pattern_text, comma, colon)
        self._schema = schema
        self._comma = comma
        self._colon = colon

    def proposals(self, text: bytes) -> Iterator[Proposal]:
        """Yield ends of a text that is valid as far as it goes, the likeliest first."""
        seen: set[bytes] = set()
        try:
            for found in itertools.islice(self._proposals(text), MOST_PROPOSALS):
                if found.text not in seen:
                    seen.add(found.text)
                    yield found
        except _NOT_TOLD:
            return  # a schema that is none in this place: the grammar is the one that counts

    def is_in_string(self, text: bytes) -> bool:
        """Whether the end of a text is within a string value."""
        found = outline(text)
        return found is not None and found.tail == "string"

    def most_left(self) -> int:
        """Return how many bytes an end takes at the most expensive place of a text, in which no
        schema is within itself; a guess where the schemas are too many."""
        self._flats.allowance = 4 * ALLOWANCE
        under_way: set[int] = set()
        known: dict[int, int] = {}

        def most(schema: Any) -> int:
            if id(schema) in under_way or not isinstance(schema, dict):
                return len(self._smallest.text(schema) or "")
            if id(schema) not in known:
                under_way.add(id(schema))
                known[id(schema)] = max(map(of_flat, self._flats.of(schema)), default=0)
                under_way.discard(id(schema))
            return known[id(schema)]

        def of_flat(flat: Flat) -> int:
            self._flats.spend()
            here = len(self._smallest.of_flat(flat) or "") + 1
            properties = flat.get("properties") or {}
            inner = [*properties.values(), *(flat.get("patternProperties") or {}).values()]
            inner += [flat.get("additionalProperties"), flat.get("contains")]
            for key in ("items", "prefixItems", "additionalItems"):
                items = flat.get(key)
                inner += items if isinstance(items, list) else [items]
            return here + max((most(schema) for schema in inner if schema is not None), default=0)

        try:
            return most(self._schema)
        except _NOT_TOLD:
            return 0

    def _proposals(self, text: bytes) -> Iterator[Proposal]:
        self._flats.allowance = ALLOWANCE
        found = outline(text)
        if found is None:
            return
        blank = text[-1:].isspace()
        for flats, inner in self._alternatives(found):
            pieces = [*self._pieces(found, flats, inner, blank=blank)]
            if not pieces:
                continue
            unknown = next((i for i, piece in enumerate(pieces) if piece is None), len(pieces))
            whole = "".join(piece for piece in pieces[:unknown] if piece is not None)
            yield Proposal(self._begun(found) + whole.encode(), unknown == len(pieces))

    def _begun(self, found: Outline) -> bytes:
        """Return what ends a scalar that has begun."""
        if found.tail == "string":
            return to_end_of_string(found.rest)
        if found.tail == "scalar":
            for literal in _LITERALS:
                if literal.startswith(found.rest):
                    return literal[len(found.rest) :]
            return b"" if found.rest[-1:].isdigit() else b"0"
        return b""

    def _alternatives(self, found: Outline) -> Iterator[tuple[Sequence[Flat], Any]]:
        """Yield an alternative of each open level's schema, and the schema of the value that is
        being written or comes next."""

        def below(schema: Any, levels: list[Open]) -> Iterator[tuple[list[Flat], Any]]:
            if not levels:
                yield [], schema
                return
            self._flats.spend()
            level = levels[0]
            options = [flat for flat in self._flats.of(schema) if _agrees(flat, level)]
            for flat in options[:_MOST_OPTIONS]:
                if isinstance(level.key, int):
                    inner = item_of(flat, level.key)
                else:
                    inner = True if level.key is None else property_of(flat, level.key)
                for flats, innermost in below(inner, levels[1:]):
                    yield [flat, *flats], innermost

        yield from below(self._schema, found.levels)

    def _pieces(
        self, found: Outline, flats: Sequence[Flat], inner: Any, *, blank: bool
    ) -> Iterator[str | None]:
        """Yield the parts of an end, None for one that is not known."""
        tail = found.tail
        if tail == "string":
            yield self._padding(found.rest, inner) + '"'
        if tail == "in key":
            key = self._key(found, flats[-1])
            if key is None:
                return
            yield from key
        if tail == "colon":
            yield self._colon
            yield self._smallest.text(inner)
        is_empty = tail == "first key" or (tail == "value" and _is_empty_array(found.levels))
        is_behind_comma = tail == "key"
        if tail == "value" and not is_empty:
            yield self._gap(found, blank=blank)
            yield self._smallest.text(inner)
        for level, flat in zip(reversed(found.levels), reversed(flats), strict=True):
            if level.is_array:
                present = max(len(level.values), 0 if is_empty else _index(level) + 1)
                parts = self._smallest.items(flat, present)
                members: list[tuple[str | None, ...]] = [(item,) for item in parts]
            else:
                written = {*level.values} | ({level.key} if level.key is not None else set())
                pairs = self._smallest.members(flat, dict.fromkeys(map(str, written)))
                if is_behind_comma and not pairs:
                    pairs = self._any_member(flat, written)
                members = [(key + self._colon, value) for key, value in pairs]
            for member in members:
                if is_behind_comma:
                    yield "" if blank else self._comma[1:]
                elif not is_empty:
                    yield self._comma
                is_empty = is_behind_comma = False
                yield from member
            yield "]" if level.is_array else "}"
            is_empty = is_behind_comma = False

    def _key(self, found: Outline, flat: Flat) -> tuple[str, str | None] | None:
        """Return the rest of a key that has begun, and a value: of a property that is required, if
        one begins so, or of any."""
        level = found.levels[-1]
        begun = found.rest.decode("utf-8", "replace")
        names = [*flat.get("required", ()), *(flat.get("properties") or {})]
        for name in names:
            key = json.dumps(name, ensure_ascii=False)[1:]
            if name not in level.values and key.startswith(begun):
                level.key = name
                rest = key[len(begun) :] + self._colon
                return rest, self._smallest.text(property_of(flat, name))
        return None

    def _gap(self, found: Outline, *, blank: bool) -> str:
        """Return the blank that the separator before a value still lacks."""
        if not found.levels or blank:
            return ""
        return (self._comma if found.levels[-1].is_array else self._colon)[1:]

    def _padding(self, rest: bytes, schema: Any) -> str:
        least = min((flat.get("minLength", 0) for flat in self._flats.of(schema)), default=0)
        if not isinstance(least, int) or least <= 0:
            return ""
        ended = rest + to_end_of_string(rest)
        num = len(json.loads(b'"' + ended + b'"', strict=False))
        return "a" * min(max(0, least - num), 4_096)

    def _any_member(self, flat: Flat, written: set[Any]) -> list[tuple[str, str | None]]:
        """Return a property for a place where one has to come."""
        names = [name for name in flat.get("properties") or {} if name not in written]
        later = names[-1:] or [next(f"{i}" for i in itertools.count() if f"{i}" not in written)]
        return [(json.dumps(name), self._smallest.text(property_of(flat, name))) for name in later]


def _is_empty_array(levels: list[Open]) -> bool:
    return bool(levels) and levels[-1].is_array and levels[-1].key == 0


def _index(level: Open) -> int:
    return level.key if isinstance(level.key, int) else 0


def _agrees(flat: Flat, level: Open) -> bool:
    """Whether an alternative can be that of an object or array, by its kind and by the scalars that
    are there."""
    kinds = flat.get("type")
    kind = "array" if level.is_array else "object"
    if kinds is not None and kind not in ([kinds] if isinstance(kinds, str) else kinds):
        return False
    properties = flat.get("properties")
    if level.is_array or not isinstance(properties, dict):
        return True
    for name, value in level.values.items():
        schema = properties.get(name)
        if schema is False:
            return False
        if value is COMPLEX or not isinstance(schema, dict):
            continue
        if "const" in schema and schema["const"] != value:
            return False
        if isinstance(schema.get("enum"), list) and value not in schema["enum"]:
            return False
    return True
