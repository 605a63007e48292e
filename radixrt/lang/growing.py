"""Typed values while they are generated: an object that grows, its complete fields marked."""

from __future__ import annotations

import types
import typing
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Annotated, Any, Union

from radixrt.errors import Cancelled, InvalidArgument, RadixError, ValueRefused
from radixrt.lang.branch import STREAM_CREDIT
from radixrt.lang.call import Call, wait_until, wait_until_in_loop
from radixrt.lang.checked import CheckedCall
from radixrt.lang.execution import Execution
from radixrt.lang.fields import Field, field_table
from radixrt.lang.forms import alias_value
from radixrt.lang.nodes import Gen
from radixrt.lang.partial import MISSING, Node, PartialJson
from radixrt.lang.reading import TypeReading, result_type, split_reasoning
from radixrt.lang.transcript import CallStep


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


# ---------------------------------------------------------------- following a generation


class _Follower:
    """Feeds a generation's chunks to a parser; begins anew when a value is refused."""

    def __init__(self, step: CallStep, execution: Execution) -> None:
        node = step.node
        assert isinstance(node, Gen)
        reading = node.reading
        self._type = reading.result.type if isinstance(reading, TypeReading) else Any
        self._after = "" if node.constraint is None else node.constraint.after
        self._step = step
        self._execution = execution
        self._is_over = False
        self._ungranted = 0
        self._begin(self._call)

    @property
    def _call(self) -> Call:
        call = self._step.call
        if isinstance(call, CheckedCall) and call.attempt is not None:
            return call.attempt
        return call

    def _begin(self, call: Call) -> None:
        self._followed = call
        self._taken = 0
        self._text = ""
        self._fed = 0
        self._parser = PartialJson()
        self._partial: Partial | None = None

    def is_ready(self) -> bool:
        call = self._call
        return (
            self._step.call.is_done or call is not self._followed or len(call.chunks) > self._taken
        )

    def next(self) -> Partial | None:
        """Return the value as grown; None where it has to wait; StopIteration at the end."""
        if self._is_over:
            raise StopIteration
        if not self.is_ready():
            return None
        if self._step.call.is_done:
            self._is_over = True
            self._execution.finish(self._step)
            text: str = self._step.texts[0]
            if not text.startswith(self._text):
                self._begin(self._call)
            self._feed(text[len(self._text) :], is_last=True)
            if not self._parser.is_complete:
                self._end()
            return self._grown()
        call = self._call
        if call is not self._followed:
            self._begin(call)
        new = call.chunks[self._taken :]
        self._taken += len(new)
        self._ungranted += len(new)
        if self._ungranted >= STREAM_CREDIT // 2:
            self._execution.branch.grant(call, self._ungranted)
            self._ungranted = 0
        self._feed("".join(chunk.text for chunk in new))
        return self._grown() if self._parser.root.kind != "unknown" else self.next()

    def _feed(self, text: str, *, is_last: bool = False) -> None:
        self._text += text
        if self._after not in self._text and not is_last:
            return
        before, _ = split_reasoning(self._text, self._after)
        begin = max(self._fed, len(before))
        self._fed = len(self._text)
        try:
            self._parser.feed(self._text[begin:])
        except ValueError as error:
            raise ValueRefused(f"the text is not JSON: {error}") from None

    def _end(self) -> None:
        try:
            self._parser.end()
        except ValueError as error:
            raise ValueRefused(f"{error}; raise max_tokens") from None

    def _grown(self) -> Partial:
        if self._partial is None or self._partial._node is not self._parser.root:
            self._partial = Partial(self._parser.root, self._type)
        return self._partial


def _follower(execution: Execution, name: str) -> _Follower:
    variable = execution.variable(name)
    if not isinstance(variable, CallStep) or not isinstance(variable.node, Gen):
        raise InvalidArgument("name", name, "it is not generated, so it does not grow")
    kind = None if variable.node.constraint is None else variable.node.constraint.kind
    if kind != "json_schema":
        raise InvalidArgument("name", name, "only what has a type or a schema grows; use text_iter")
    return _Follower(variable, execution)


def partial_iter(execution: Execution, name: str) -> Generator[Any, None, None]:
    """Yield a variable's value as it grows, last the whole; to close it earlier ends the branch."""
    follower = _follower(execution, name)
    step = follower._step
    try:
        while True:
            try:
                partial = follower.next()
            except StopIteration:
                return
            if partial is not None:
                yield partial
            elif not wait_until(
                step.call.signal,
                follower.is_ready,
                deadline=step.deadline,
                is_connected=lambda: execution.backend.is_open,
            ):
                execution.expire()
    except BaseException as error:
        _abandon(execution, error)
        raise


async def partial_in_loop(execution: Execution, name: str) -> AsyncGenerator[Any, None]:
    """``partial_iter`` for a running event loop; holds no thread."""
    follower = _follower(execution, name)
    step = follower._step
    try:
        while True:
            try:
                partial = follower.next()
            except StopIteration:
                return
            if partial is not None:
                yield partial
            elif not await wait_until_in_loop(
                step.call.signal,
                follower.is_ready,
                deadline=step.deadline,
                is_connected=lambda: execution.backend.is_open,
            ):
                execution.expire()
    except BaseException as error:
        _abandon(execution, error)
        raise


def _abandon(execution: Execution, error: BaseException) -> None:
    if not isinstance(error, RadixError):
        execution.abandon(Cancelled("the iterator over a growing value was closed"))
