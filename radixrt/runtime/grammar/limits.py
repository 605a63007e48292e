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


def take_long_limits(schema: Any) -> tuple[Any, list[CountLimit], frozenset[str]]:
    """Return a schema without its long limits, those limits, and their pointers in the schema.

    A limit behind a reference has no one place in the value: it is taken out as well, and found by
    the final validation.
    """
    limits: list[CountLimit] = []
    counted: set[str] = set()
    new = _take(schema, "", "", limits, counted)
    return new, limits, frozenset(counted)


def _take(
    schema: Any, at: str, where: str | None, limits: list[CountLimit], counted: set[str]
) -> Any:
    """``at`` is the pointer in the schema, ``where`` that in the value; None when not known."""
    if not isinstance(schema, dict):
        return schema
    new: dict[str, Any] = {}
    for key, value in schema.items():
        bound = {"maxLength": LONGEST_STRING, "maxItems": MOST_ITEMS}.get(key)
        if bound is not None and isinstance(value, int | float) and value > bound:
            if where is not None:
                limits.append(CountLimit(where, key, int(value)))
                counted.add(f"{at}/{key}")
            continue
        inner = f"{at}/{key}"
        if key in ("properties", "patternProperties") and isinstance(value, dict):
            new[key] = {
                name: _take(
                    item,
                    f"{inner}/{_escape(name)}",
                    _below(where, _escape(name) if key == "properties" else "*"),
                    limits,
                    counted,
                )
                for name, item in value.items()
            }
        elif key in ("items", "additionalItems", "additionalProperties") and isinstance(
            value, dict
        ):
            new[key] = _take(value, inner, _below(where, "*"), limits, counted)
        elif key in ("items", "prefixItems") and isinstance(value, list):
            new[key] = [
                _take(item, f"{inner}/{i}", _below(where, str(i)), limits, counted)
                for i, item in enumerate(value)
            ]
        elif key in ("allOf", "anyOf", "oneOf") and isinstance(value, list):
            new[key] = [
                _take(item, f"{inner}/{i}", where if key == "allOf" else None, limits, counted)
                for i, item in enumerate(value)
            ]
        elif key in ("$defs", "definitions") and isinstance(value, dict):
            new[key] = {
                name: _take(item, f"{inner}/{_escape(name)}", None, limits, counted)
                for name, item in value.items()
            }
        else:
            new[key] = value
    return new


def _below(where: str | None, key: str) -> str | None:
    return None if where is None else f"{where}/{key}"


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
