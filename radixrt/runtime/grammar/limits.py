"""Limits of a schema that are too long for an automaton: the runtime counts them."""

from __future__ import annotations

from typing import Any, NamedTuple

LONGEST_STRING = 1_024
"""A longer ``maxLength`` is counted: as an automaton it takes a state a character."""

MOST_ITEMS = 256
"""A larger ``maxItems`` is counted."""


class CountLimit(NamedTuple):
    """At most ``limit`` characters of the string, or items of the array, at a JSON pointer with
    ``*`` for any key or item."""

    pointer: str
    keyword: str
    limit: int


class LongLimits(NamedTuple):
    """The long limits of a schema: those that are ``counted``, and the pointers in the schema of
    those that have no one place in the value (behind a reference or in an alternative) and are
    ``checked`` by the final validation."""

    counted: list[CountLimit]
    checked: set[str]


def take_long_limits(schema: Any) -> tuple[Any, LongLimits]:
    """Return a schema without its long limits, and those limits."""
    limits = LongLimits([], set())
    return _take(schema, "", "", limits), limits


def _take(schema: Any, at: str, where: str | None, limits: LongLimits) -> Any:
    """``at`` is the pointer in the schema, ``where`` that in the value; None when not known."""
    if not isinstance(schema, dict):
        return schema
    new: dict[str, Any] = {}
    for key, value in schema.items():
        bound = {"maxLength": LONGEST_STRING, "maxItems": MOST_ITEMS}.get(key)
        if bound is not None and isinstance(value, int | float) and value > bound:
            if where is None:
                limits.checked.add(f"{at}/{key}")
            else:
                limits.counted.append(CountLimit(where, key, int(value)))
            continue
        inner = f"{at}/{key}"
        if key in ("properties", "patternProperties") and isinstance(value, dict):
            new[key] = {
                name: _take(
                    item,
                    f"{inner}/{_escape(name)}",
                    _below(where, _escape(name) if key == "properties" else "*"),
                    limits,
                )
                for name, item in value.items()
            }
        elif key in ("items", "additionalItems", "additionalProperties") and isinstance(
            value, dict
        ):
            new[key] = _take(value, inner, _below(where, "*"), limits)
        elif key in ("items", "prefixItems") and isinstance(value, list):
            new[key] = [
                _take(item, f"{inner}/{i}", _below(where, str(i)), limits)
                for i, item in enumerate(value)
            ]
        elif key in ("allOf", "anyOf", "oneOf") and isinstance(value, list):
            new[key] = [
                _take(item, f"{inner}/{i}", where if key == "allOf" else None, limits)
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


def _below(where: str | None, key: str) -> str | None:
    return None if where is None else f"{where}/{key}"


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
