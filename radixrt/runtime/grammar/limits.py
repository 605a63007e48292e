"""Limits of a schema that the runtime counts instead of the automaton.

Those of plain strings, where a limit concerns exactly one place of the value: that makes masks
cheap (``counting.py``). And all that are too long for an automaton.
"""

from __future__ import annotations

from typing import Any, NamedTuple

LONGEST_STRING = 1_024
"""A longer ``maxLength`` is never left to the automaton: it takes a state a character."""

MOST_ITEMS = 256
"""A larger ``maxItems`` is counted."""

_NOTES = frozenset(
    ("title", "description", "default", "examples", "$comment", "deprecated", "readOnly")
)
"""Keywords that assert nothing."""

_STRING = _NOTES | {"type", "minLength", "maxLength"}
_OBJECT = _NOTES | {
    *("$schema", "$id", "$defs", "definitions", "type", "properties", "required"),
    *("additionalProperties", "minProperties", "maxProperties"),
}
_ARRAY = _NOTES | {"type", "items", "minItems", "maxItems", "uniqueItems"}
_UNION = _NOTES | {"anyOf", "oneOf"}
_OTHER_TYPES = frozenset(("null", "boolean", "integer", "number", "object", "array"))


class CountLimit(NamedTuple):
    """At most ``limit`` characters of the string, or items of the array, at a JSON pointer with
    ``*`` for any key or item."""

    pointer: str
    keyword: str
    limit: int


class LongLimits(NamedTuple):
    """The limits that the automaton does not get: those that are ``counted``, and the pointers in
    the schema of those that are too long and have no one place in the value (behind a reference or
    in an alternative), which are ``checked`` by the final validation."""

    counted: list[CountLimit]
    checked: set[str]


class _Where(NamedTuple):
    """Where a schema's values are in the whole value: at ``pointer``. ``is_alone``: no other schema
    speaks about them, and this one about no others."""

    pointer: str
    is_alone: bool

    def below(self, key: str, *, is_alone: bool) -> _Where:
        return _Where(f"{self.pointer}/{_escape(key)}", self.is_alone and is_alone)

    @property
    def beside_others(self) -> _Where:
        return self._replace(is_alone=False)


def take_long_limits(schema: Any) -> tuple[Any, LongLimits]:
    """Return a schema without its long limits and those of plain strings, and those limits."""
    limits = LongLimits([], set())
    return _take(schema, "", _Where("", not _refers_to_places(schema)), limits), limits


def _refers_to_places(schema: Any) -> bool:
    """Whether a reference may be to a schema that also has a place of its own."""
    if isinstance(schema, list):
        return any(map(_refers_to_places, schema))
    if not isinstance(schema, dict):
        return False
    for key, value in schema.items():
        if key in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
            if not value.startswith(("#/$defs/", "#/definitions/")):
                return True
        elif _refers_to_places(value):
            return True
    return False


def _is_plain_string(schema: dict[str, Any]) -> bool:
    least = schema.get("minLength", 0)
    return (
        schema.get("type") == "string"
        and schema.keys() <= _STRING
        and isinstance(least, int)
        and least <= schema.get("maxLength", 0)
    )


def _is_no_string(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    kinds = schema.get("type")
    return isinstance(kinds, str) and kinds in _OTHER_TYPES


def _take(schema: Any, at: str, where: _Where | None, limits: LongLimits) -> Any:
    """``at`` is the pointer in the schema, ``where`` that in the value; None when not known."""
    if not isinstance(schema, dict):
        return schema
    keys = schema.keys()
    new: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("maxLength", "maxItems") and isinstance(value, int | float):
            is_long = value > (LONGEST_STRING if key == "maxLength" else MOST_ITEMS)
            is_plain = key == "maxLength" and _is_plain_string(schema)
            if where is not None and (is_long or (is_plain and where.is_alone)):
                limits.counted.append(CountLimit(where.pointer, key, int(value)))
                continue
            if is_long:
                limits.checked.add(f"{at}/{key}")
                continue
        inner = f"{at}/{key}"
        if key in ("properties", "patternProperties") and isinstance(value, dict):
            is_listed = key == "properties"
            new[key] = {
                name: _take(
                    item,
                    f"{inner}/{_escape(name)}",
                    where
                    and where.below(
                        name if is_listed else "*",
                        is_alone=is_listed and keys <= _OBJECT and name != "*",
                    ),
                    limits,
                )
                for name, item in value.items()
            }
        elif key in ("items", "additionalItems", "additionalProperties") and isinstance(
            value, dict
        ):
            is_alone = key == "items" and keys <= _ARRAY
            new[key] = _take(value, inner, where and where.below("*", is_alone=is_alone), limits)
        elif key in ("items", "prefixItems") and isinstance(value, list):
            new[key] = [
                _take(item, f"{inner}/{i}", where and where.below(str(i), is_alone=False), limits)
                for i, item in enumerate(value)
            ]
        elif key == "allOf" and isinstance(value, list):
            new[key] = [
                _take(item, f"{inner}/{i}", where and where.beside_others, limits)
                for i, item in enumerate(value)
            ]
        elif key in ("anyOf", "oneOf") and isinstance(value, list):
            only = None  # the one alternative that a string can be of
            others = [item for item in value if not _is_no_string(item)]
            if len(others) == 1 and keys <= _UNION and len(keys & {"anyOf", "oneOf"}) == 1:
                only = (
                    others[0]
                    if isinstance(others[0], dict) and _is_plain_string(others[0])
                    else None
                )
            new[key] = [
                _take(item, f"{inner}/{i}", where if item is only else None, limits)
                for i, item in enumerate(value)
            ]
        elif key in ("$defs", "definitions") and isinstance(value, dict):
            new[key] = {
                name: _take(item, f"{inner}/{_escape(name)}", None, limits)
                for name, item in value.items()
            }
        else:
            new[key] = value
    return new


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
