"""A typed value that grows, its complete fields marked."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Union

from radixrt.errors import InvalidArgument, ValueRefused
from radixrt.lang.fields import Field, field_table
from radixrt.lang.forms import alias_value
from radixrt.lang.partial import MISSING, Node
from radixrt.lang.reading import result_type


class Partial:
    """A value on its way. ``p.name``, ``p["key"]`` and ``p[0]`` give what is in it so far.

    A field that is complete is what it will be in the end, of its type. One that has begun is a
    ``Partial`` (an object, an array) or the beginning of its text; one that has not, None.
    ``is_complete(name)`` tells them apart, ``complete`` lists the JSON pointers of all that are. A
    field that is called like one of these is to be had as ``p["complete"]``.
    """

    def __init__(self, node: Node, tp: Any) -> None:
        self._node = node
        self._type = tp
        self._final: dict[Any, Any] = {}
        self._growing: dict[Any, Partial] = {}

    def is_complete(self, name: str | int | None = None) -> bool:
        """Whether a field (an item) is what it will be; without a name, the whole."""
        if name is None:
            return self._node.is_complete
        item = self._node.items.get(self._key(name))
        return item is not None and item.is_complete

    @property
    def complete(self) -> frozenset[str]:
        """The JSON pointers of all values that are complete; ``""`` is the whole."""
        return frozenset(_complete(self._node, ""))

    @property
    def plain(self) -> Any:
        """The value so far as plain JSON; what has not begun is left out."""
        value = self._node.plain()
        return None if value is MISSING else value

    def __getitem__(self, name: str | int) -> Any:
        key = self._key(name)
        if key in self._final:
            return self._final[key]
        node = self._node.items.get(key)
        if node is None:
            return None
        tp = child_type(self._type, key, self._node)
        if node.is_complete:
            return self._final.setdefault(key, _read(node, tp))
        if node.kind in ("object", "array"):
            return self._growing.setdefault(key, Partial(node, tp))
        return None if node.value is MISSING else node.value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        key = self._key(name)
        if key not in self._node.items and key not in _keys(self._type).values():
            raise AttributeError(f"{_type_name(self._type)} has no field {name!r}")
        return self[name]

    def __len__(self) -> int:
        return len(self._node.items)

    def __iter__(self) -> Iterator[Any]:
        """Yield the items of an array so far, the keys of an object."""
        if self._node.kind == "array":
            return (self[index] for index in range(len(self)))
        return iter(self._node.items)

    def __contains__(self, name: object) -> bool:
        return self._key(name) in self._node.items

    def __repr__(self) -> str:
        return f"Partial({self.plain!r}{'' if self.is_complete() else ', …'})"

    def _key(self, name: Any) -> Any:
        if self._node.kind == "array":
            return name + len(self._node.items) if isinstance(name, int) and name < 0 else name
        return _keys(self._type).get(name, name)


def _read(node: Node, tp: Any) -> Any:
    """The value of a complete node; plain JSON where its type alone does not say (yet)."""
    try:
        return result_type(tp).read_parsed(node.plain())
    except (ValueRefused, InvalidArgument):
        return node.plain()


def _complete(node: Node, pointer: str) -> Iterator[str]:
    if node.is_complete:
        yield pointer
    for key, item in node.items.items():
        escaped = str(key).replace("~", "~0").replace("/", "~1")
        yield from _complete(item, f"{pointer}/{escaped}")


# ---------------------------------------------------------------- the types of what is inside


def child_type(tp: Any, key: Any, node: Node) -> Any:
    """Return the type of a value's field or item; ``Any`` where it is not known."""
    tp = _bare(tp, node)
    origin, arguments = typing.get_origin(tp) or tp, typing.get_args(tp)
    if node.kind == "array":
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is ...):
            return arguments[key] if key < len(arguments) else Any
        return arguments[0] if arguments else Any
    for field in _fields(tp):
        if field.key == key:
            return field.type
    return arguments[1] if len(arguments) == 2 else Any


def _bare(tp: Any, node: Node) -> Any:
    """A type without annotations; of a union the first member that the keys so far fit."""
    while typing.get_origin(tp) is Annotated or hasattr(tp, "__value__"):
        tp = alias_value(tp) if hasattr(tp, "__value__") else typing.get_args(tp)[0]
    if typing.get_origin(tp) not in (Union, types.UnionType):
        return tp
    members = [_bare(member, node) for member in typing.get_args(tp)]
    if node.kind == "array":
        lists = [m for m in members if typing.get_origin(m) in (list, tuple, set, frozenset)]
        return lists[0] if lists else Any
    for member in members:
        keys = {field.key for field in _fields(member)}
        if keys and node.items.keys() <= keys:
            return member
    return Any


def _fields(tp: Any) -> tuple[Field, ...]:
    if hasattr(tp, "model_fields") and hasattr(tp, "model_validate"):
        from radixrt.lang.pydantic import model_fields

        return model_fields(tp)
    table = None if tp is Any else field_table(tp)
    return () if table is None else table.fields


def _keys(tp: Any) -> dict[str, str]:
    while typing.get_origin(tp) is Annotated:
        tp = typing.get_args(tp)[0]
    members = typing.get_args(tp) if typing.get_origin(tp) in (Union, types.UnionType) else (tp,)
    return {field.attribute: field.key for member in members for field in _fields(member)}


def _type_name(tp: Any) -> str:
    return getattr(tp, "__name__", None) or str(tp)
