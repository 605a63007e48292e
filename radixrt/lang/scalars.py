"""Scalars of the standard library in JSON: the schema that admits exactly what can be read back.

A ``format`` names a syntax loosely and no engine enforces all of them, so dates and the like have
patterns here, down to the days of February: what matches can be read, always.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR = r"(?:[0-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    rf"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
_OFFSET = r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_HEX = "[0-9a-f]"
_BASE64 = r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?"

PATTERNS: dict[str, str] = {
    "date": f"^{_DATE}$",
    "date-time": f"^{_DATE}T{_CLOCK}{_OFFSET}$",
    "time": f"^{_CLOCK}{_OFFSET}$",
    "duration": r"^P[0-9]{1,5}DT(?:[01][0-9]|2[0-3])H[0-5][0-9]M[0-5][0-9]S$",
    "uuid": f"^{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}$",
}
"""JSON Schema ``format`` → a pattern of which every match is a value."""

INTEGER = "^(?:0|-?[1-9][0-9]{0,17})$"
"""Whole numbers as keys of JSON objects."""

NAIVE_DATETIME = f"^{_DATE}T{_CLOCK}$"
"""Times without a zone, where a type asks for them."""

_TEXTUAL: dict[Any, str] = {
    datetime.date: PATTERNS["date"],
    datetime.datetime: f"^{_DATE}T{_CLOCK}{_OFFSET}?$",
    datetime.time: f"^{_CLOCK}{_OFFSET}?$",
    datetime.timedelta: PATTERNS["duration"],
    uuid.UUID: PATTERNS["uuid"],
    decimal.Decimal: r"^-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?$",
    bytes: f"^{_BASE64}$",
    bytearray: f"^{_BASE64}$",
}

_PLAIN: dict[Any, str] = {
    int: "integer",
    float: "number",
    bool: "boolean",
    str: "string",
    type(None): "null",
}

_NUMERIC = {
    "gt": "exclusiveMinimum",
    "ge": "minimum",
    "lt": "exclusiveMaximum",
    "le": "maximum",
    "multiple_of": "multipleOf",
}
_LENGTHS = {
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}


def scalar_schema(tp: Any) -> dict[str, Any] | None:
    """Return the schema of a scalar type, None when ``tp`` is no scalar."""
    try:
        if tp in _PLAIN:
            return {"type": _PLAIN[tp]}
        if tp in _TEXTUAL:
            return {"type": "string", "pattern": _TEXTUAL[tp]}
    except TypeError:  # not hashable
        pass
    return None


def read_scalar(tp: Any, metas: Sequence[msgspec.Meta], value: Any) -> Any:
    """Return the scalar that a JSON value stands for; raises ``msgspec.ValidationError``."""
    return msgspec.convert(value, Annotated[(tp, *metas)] if metas else tp)


def constrained(
    tp: Any, schema: Mapping[str, Any], metas: Sequence[msgspec.Meta]
) -> dict[str, Any]:
    """Return the ``schema`` of ``tp`` with the constraints of ``metas`` added.

    Raises ``ValueError`` for a constraint that the type has no keyword for.
    """
    merged = dict(schema)
    for meta in metas:
        for name, keyword in _NUMERIC.items():
            if (bound := getattr(meta, name)) is not None:
                if tp not in (int, float):
                    raise ValueError(f"{name} is for int and float")
                merged[keyword] = bound
        if meta.pattern is not None:
            if tp is not str:
                raise ValueError("pattern is for str")
            merged["pattern"] = meta.pattern
        for length, which in ((meta.min_length, 0), (meta.max_length, 1)):
            if length is not None:
                keyword, unit = _length(tp, merged, which)
                merged[keyword] = unit * length if unit == 1 else unit * -(-length // 3)
        if meta.tz is not None:
            merged["pattern"] = _with_zone(merged.get("pattern", ""), meta.tz)
        if meta.description is not None:
            merged["description"] = meta.description
        merged.update(meta.extra_json_schema or {})
    return merged


def _length(tp: Any, schema: Mapping[str, Any], which: int) -> tuple[str, int]:
    """The keyword for the least (0) or greatest (1) length, and the characters of one unit."""
    if tp in (bytes, bytearray):  # bytes are counted, base64 is written: four for three
        return _LENGTHS["string"][which], 4
    if tp in _TEXTUAL or schema.get("type") not in _LENGTHS:
        raise ValueError("min_length and max_length are for str, bytes, lists and dicts")
    return _LENGTHS[schema["type"]][which], 1


def _with_zone(pattern: str, is_needed: bool) -> str:
    optional = f"{_OFFSET}?$"
    if not pattern.endswith(optional):
        raise ValueError("tz is for datetime and time")
    bare = pattern.removesuffix(optional)
    return f"{bare}{_OFFSET}$" if is_needed else f"{bare}$"
