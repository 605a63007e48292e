"""The fields of record types: dataclasses, TypedDicts, NamedTuples and msgspec's Structs."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from radixrt.errors import InvalidArgument

_QUALIFIERS = {"Required", "NotRequired", "ReadOnly", "ClassVar", "Final"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its key in JSON, its attribute in Python, its type."""

    key: str
    attribute: str
    type: Any
    is_required: bool


@dataclass(frozen=True, slots=True)
class Fields:
    """A record type. ``make`` builds a value from attributes; ``tag`` is a key with its one value;
    ``is_exact`` is False when code of the type's own may refuse values."""

    fields: tuple[Field, ...]
    make: Callable[[Mapping[str, Any]], Any]
    is_exact: bool
    tag: tuple[str, str | int] | None = None


def field_table(tp: Any) -> Fields | None:
    """Return the fields of a record type, None when ``tp`` is none.

    Raises ``InvalidArgument`` for one whose annotations cannot be resolved.
    """
    cls = typing.get_origin(tp) or tp
    if not isinstance(cls, type):
        return None
    if issubclass(cls, msgspec.Struct):
        return _struct(tp, cls)
    hints = _Hints(tp, cls)
    if dataclasses.is_dataclass(cls):
        return _dataclass(cls, hints)
    if issubclass(cls, dict) and hasattr(cls, "__required_keys__"):
        fields = [Field(name, name, hints[name], hints.is_required(name)) for name in hints.names()]
        return Fields(tuple(fields), dict, is_exact=True)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        defaults = getattr(cls, "_field_defaults", {})
        fields = [Field(name, name, hints.get(name), name not in defaults) for name in cls._fields]
        return Fields(tuple(fields), lambda given: cls(**given), is_exact=True)
    return None


def _dataclass(cls: type, hints: _Hints) -> Fields:
    fields = [
        Field(
            field.name,
            field.name,
            hints[field.name],
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(cls)
        if field.init
    ]
    own_init = cls.__dataclass_params__.init is False  # type: ignore[attr-defined]
    is_exact = not hasattr(cls, "__post_init__") and not own_init
    return Fields(tuple(fields), lambda given: cls(**given), is_exact)


def _struct(tp: Any, cls: type[msgspec.Struct]) -> Fields:
    config = cls.__struct_config__
    fields = [
        Field(field.encode_name, field.name, field.type, field.required)
        for field in msgspec.structs.fields(tp)
    ]
    tag = (config.tag_field, config.tag) if config.tag_field and config.tag is not None else None
    is_exact = not hasattr(cls, "__post_init__")
    return Fields(tuple(fields), lambda given: cls(**given), is_exact, tag)


class _Hints:
    """The resolved annotations of a class, with its type parameters filled in."""

    def __init__(self, tp: Any, cls: type) -> None:
        self._cls = cls
        parameters = getattr(cls, "__parameters__", ())
        self._given = dict(zip(parameters, typing.get_args(tp), strict=False))
        self._hints: dict[str, Any] | None = None

    def names(self) -> list[str]:
        return list(self._resolved())

    def __getitem__(self, name: str) -> Any:
        return self._filled(self._resolved()[name])

    def get(self, name: str) -> Any:
        return self[name] if name in self._resolved() else Any

    def is_required(self, name: str) -> bool:
        """Whether a key of a TypedDict has to be there."""
        # What the class itself says of its keys is wrong where annotations are text.
        hint = self._resolved()[name]
        while (qualifier := getattr(typing.get_origin(hint), "_name", None)) in _QUALIFIERS:
            if qualifier in ("Required", "NotRequired"):
                return bool(qualifier == "Required")
            hint = typing.get_args(hint)[0]
        required: frozenset[str] = getattr(self._cls, "__required_keys__", frozenset())
        return name in required

    def _resolved(self) -> dict[str, Any]:
        if self._hints is None:
            try:
                self._hints = typing.get_type_hints(self._cls, include_extras=True)
            except (NameError, TypeError) as error:
                raise InvalidArgument(
                    "type",
                    self._cls,
                    f"its annotations cannot be resolved ({error}); "
                    "define the types it names at module level",
                ) from None
        return self._hints

    def _filled(self, hint: Any) -> Any:
        while getattr(typing.get_origin(hint), "_name", None) in _QUALIFIERS:
            hint = typing.get_args(hint)[0]
        if isinstance(hint, TypeVar):
            return self._given.get(hint, hint)
        unfilled = getattr(hint, "__parameters__", ())
        if not unfilled or (isinstance(hint, type) and not isinstance(hint, types.GenericAlias)):
            return hint
        return hint[tuple(self._given.get(parameter, parameter) for parameter in unfilled)]
