"""Values that are listed: Literals and Enums."""

from __future__ import annotations

import enum
from typing import Any, Literal

from radixrt.errors import InvalidArgument
from radixrt.lang.form import Form, Unreadable


def literal(values: tuple[Any, ...]) -> Form:
    """Return the form of a Literal's values. Raises ``InvalidArgument``."""
    written = [value.value if isinstance(value, enum.Enum) else value for value in values]
    if not all(_is_json_scalar(value) for value in written):
        raise InvalidArgument("type", Literal[values], "a Literal of text, numbers, bool and None")
    return _one_of(list(zip(written, values, strict=True)))


def enumeration(tp: type[enum.Enum]) -> Form:
    """Return the form of an Enum: its values, or its names where they are not JSON."""
    if issubclass(tp, enum.Flag):
        raise InvalidArgument("type", tp, "flags are sets: use list[…] of an Enum")
    members = list(tp)
    if not members:
        raise InvalidArgument("type", tp, "an Enum without members has no value")
    if all(_is_json_scalar(member.value) for member in members):
        return _one_of([(member.value, member) for member in members])
    return _one_of([(member.name, member) for member in members])


def _one_of(pairs: list[tuple[Any, Any]]) -> Form:
    def read(value: Any) -> Any:
        for written, meant in pairs:
            if written == value and isinstance(written, bool) == isinstance(value, bool):
                return meant
        raise Unreadable(f"{value!r} is none of {[written for written, _ in pairs]!r}")

    return Form({"enum": [written for written, _ in pairs]}, read)


def _is_json_scalar(value: Any) -> bool:
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    return value is None or isinstance(value, str | int)
