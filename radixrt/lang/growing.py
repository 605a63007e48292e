"""Following a typed value while it is generated."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any

from radixrt.errors import Cancelled, InvalidArgument, RadixError, ValueRefused
from radixrt.lang.branch import STREAM_CREDIT
from radixrt.lang.call import Call, Waiting, wait_until, wait_until_in_loop
from radixrt.lang.checked import CheckedCall
from radixrt.lang.execution import Execution
from radixrt.lang.nodes import Gen
from radixrt.lang.partial import PartialJson
from radixrt.lang.partial_value import Partial
from radixrt.lang.reading import TypeReading, split_reasoning
from radixrt.lang.transcript import CallStep


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

    @property
    def waiting(self) -> Waiting:
        """What to wait for where there is nothing new."""
        backend = self._execution.backend
        return {
            "signal": self._step.call.signal,
            "predicate": self.is_ready,
            "deadline": self._step.deadline,
            "is_connected": lambda: backend.is_open,
        }

    def __iter__(self) -> Iterator[Partial | None]:
        return self

    def __next__(self) -> Partial | None:
        """Return the value as grown; None where it has to wait."""
        if self._is_over:
            raise StopIteration
        if not self.is_ready():
            return None
        if self._step.call.is_done:
            self._is_over = True
            self._execution.calls.finish(self._step)
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
        return self._grown() if self._parser.root.kind != "unknown" else next(self)

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
    variable = execution.values.variable(name)
    if not isinstance(variable, CallStep) or not isinstance(variable.node, Gen):
        raise InvalidArgument("name", name, "it is not generated, so it does not grow")
    kind = None if variable.node.constraint is None else variable.node.constraint.kind
    if kind != "json_schema":
        raise InvalidArgument("name", name, "only what has a type or a schema grows; use text_iter")
    return _Follower(variable, execution)


def partial_iter(execution: Execution, name: str) -> Generator[Any, None, None]:
    """Yield a variable's value as it grows, last the whole; to close it earlier ends the branch."""
    with _abandoning(execution):
        follower = _follower(execution, name)
        for partial in follower:
            if partial is not None:
                yield partial
            elif not wait_until(**follower.waiting):
                execution.calls.expire()


async def partial_in_loop(execution: Execution, name: str) -> AsyncGenerator[Any, None]:
    """``partial_iter`` for a running event loop; holds no thread."""
    with _abandoning(execution):
        follower = _follower(execution, name)
        for partial in follower:
            if partial is not None:
                yield partial
            elif not await wait_until_in_loop(**follower.waiting):
                execution.calls.expire()


@contextlib.contextmanager
def _abandoning(execution: Execution) -> Iterator[None]:
    """Leave the branch to nobody when its iterator is closed, or what reads it fails."""
    try:
        yield
    except RadixError:
        raise
    except BaseException:
        execution.abandon(Cancelled("the iterator over a growing value was closed"))
        raise
