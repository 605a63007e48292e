"""How a type is written in JSON: its schema and its reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

Read = Callable[[Any], Any]


class Unreadable(ValueError):
    """A JSON value that the type refuses, with the JSON pointer to where."""

    def __init__(self, reason: str, pointer: str = "") -> None:
        self.reason = reason
        self.pointer = pointer
        super().__init__(f"{pointer or 'the value'}: {reason}")

    def below(self, key: str | int) -> Unreadable:
        escaped = str(key).replace("~", "~0").replace("/", "~1")
        return Unreadable(self.reason, f"/{escaped}{self.pointer}")


@dataclass(frozen=True, slots=True)
class Form:
    """How a type is written. ``read`` takes parsed JSON and raises ``ValueError`` or
    ``TypeError`` for what is no value of the type."""

    schema: Mapping[str, Any]
    read: Read
    read_text: Callable[[str], Any] | None = None
    """Reads unparsed JSON, where that takes fewer steps."""


def at(key: str | int, read: Read, value: Any) -> Any:
    """Read what is at a key or index; what it raises says so."""
    try:
        return read(value)
    except Unreadable as error:
        raise error.below(key) from None
    except (ValueError, TypeError) as error:
        raise Unreadable(str(error)).below(key) from error


def expect(kind: type, value: Any) -> None:
    """Raise ``Unreadable`` unless the value is a list or a dict, as ``kind`` says."""
    if not isinstance(value, kind):
        raise Unreadable(f"expected {'an array' if kind is list else 'an object'}")


def measured(read: Read, metas: tuple[msgspec.Meta, ...]) -> Read:
    """Return a reader that also counts the items of what it has read."""

    def counted(value: Any) -> Any:
        made = read(value)
        for meta in metas:
            if meta.min_length is not None and len(made) < meta.min_length:
                raise Unreadable(f"{len(made)} items; at least {meta.min_length}")
            if meta.max_length is not None and len(made) > meta.max_length:
                raise Unreadable(f"{len(made)} items; at most {meta.max_length}")
        return made

    return counted


_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def may_fit(schema: Mapping[str, Any], value: Any, defs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a value may be one of a union's member, from what its schema says at the top."""
    while "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    if "type" in schema:
        kinds = _KINDS.get(schema["type"], (object,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            return False
    if not isinstance(value, dict) or "properties" not in schema:
        return True
    properties = schema["properties"]
    if schema.get("additionalProperties") is False and value.keys() - properties.keys():
        return "patternProperties" in schema
    return all(
        key in value and properties.get(key, {}).get("const", value[key]) == value[key]
        for key in schema.get("required", ())
    )
