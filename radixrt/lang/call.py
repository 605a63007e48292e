"""Calls in flight: futures that the client's reader thread resolves and any thread may wait for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypedDict

from radixrt.errors import ProtocolError, RadixError, TransportError
from radixrt.protocol import Chosen, Chunk, Finished, Reply

_LIVENESS_S = 1.0
"""How long a waiting thread sleeps before it looks whether its connection still exists."""

Result = Finished | Chosen | Reply


class Signal:
    """Something changed: wakes waiting threads and calls listeners.

    Listeners are called on the notifying thread and must return at once.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    def notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()

    def wait_for(self, predicate: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until ``predicate()`` holds; returns whether it does after ``timeout_s`` seconds."""
        with self._changed:
            return self._changed.wait_for(predicate, timeout_s)

    @contextlib.contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call ``listener`` at every change while the context is open."""
        self.listen(listener)
        try:
            yield
        finally:
            self.unlisten(listener)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` at every change from now on."""
        with self._changed:
            self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        """Stop calling ``listener``; harmless when it is not called any more."""
        with self._changed, contextlib.suppress(ValueError):
            self._listeners.remove(listener)


async def changed_in_loop(signal: Signal, predicate: Callable[[], bool], timeout_s: float) -> bool:
    """Wait like ``Signal.wait_for``, but without holding a thread."""
    import asyncio  # late: it is a good part of what importing the language would cost

    loop = asyncio.get_running_loop()
    woken = asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(woken.set)

    with signal.listening(wake), contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not predicate():
                await woken.wait()
                woken.clear()
    return predicate()


class Call:
    """One call: its streamed chunks so far and, in the end, its result or its error.

    It ends once: whatever arrives after that is dropped.
    """

    __slots__ = ("_error", "_expected", "_result", "chunks", "done_at", "id", "signal")

    def __init__(self, call_id: int, expected: type[Result], signal: Signal) -> None:
        self.id = call_id
        self.signal = signal
        self.chunks: list[Chunk] = []
        self.done_at = 0.0  # monotonic seconds, once it has ended well
        self._expected = expected
        self._result: Result | None = None
        self._error: RadixError | None = None

    @property
    def is_done(self) -> bool:
        return self._result is not None or self._error is not None

    @property
    def error(self) -> RadixError | None:
        return self._error

    @property
    def result(self) -> Result:
        """The result of a call that has ended well; raises the error of one that has not."""
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def add_chunk(self, chunk: Chunk) -> None:
        if not self.is_done and chunk.index == 0:
            self.chunks.append(chunk)
            self.signal.notify()

    def resolve(self, result: Result) -> None:
        if not isinstance(result, self._expected):
            self.fail(
                ProtocolError(
                    f"call {self.id} was answered with {type(result).__name__} "
                    f"instead of {self._expected.__name__}"
                )
            )
        elif not self.is_done:
            self.done_at = time.monotonic()
            self._result = result
            self.signal.notify()

    def fail(self, error: RadixError) -> None:
        if not self.is_done:
            self._error = error
            self.signal.notify()


class Watch:
    """Calls back once, when the last of some calls has ended. Holds nothing afterwards: a closure
    that removes itself would be a cycle, and keep a program's state until it is collected."""

    def __init__(self, signal: Signal, calls: list[Call], callback: Callable[[], None]) -> None:
        self._signal = signal
        self._calls = calls
        self._callback = callback
        self._lock = threading.Lock()
        self._is_over = False

    def begin(self) -> None:
        self._signal.listen(self._check)
        self._check()

    def _check(self) -> None:
        with self._lock:
            if self._is_over or not all(call.is_done for call in self._calls):
                return
            self._is_over = True
        self._signal.unlisten(self._check)
        self._callback()


class Waiting(TypedDict):
    """The arguments of ``wait_until``, for what can be waited for in both ways."""

    signal: Signal
    predicate: Callable[[], bool]
    deadline: float | None
    is_connected: Callable[[], bool]


def wait_until(
    signal: Signal,
    predicate: Callable[[], bool],
    *,
    deadline: float | None,
    is_connected: Callable[[], bool],
) -> bool:
    """Wait until ``predicate()`` holds; False when ``deadline`` (monotonic seconds) came first.

    Never waits for a connection that is gone: raises ``TransportError``.
    """
    while not signal.wait_for(predicate, _slice(deadline)):
        if deadline is not None and time.monotonic() >= deadline:
            return False
        if not is_connected() and not predicate():
            raise TransportError("the connection to the runtime is closed")
    return True


async def wait_until_in_loop(
    signal: Signal,
    predicate: Callable[[], bool],
    *,
    deadline: float | None,
    is_connected: Callable[[], bool],
) -> bool:
    """``wait_until`` for a running event loop: holds no thread."""
    while not await changed_in_loop(signal, predicate, _slice(deadline)):
        if deadline is not None and time.monotonic() >= deadline:
            return False
        if not is_connected() and not predicate():
            raise TransportError("the connection to the runtime is closed")
    return True


def _slice(deadline: float | None) -> float:
    if deadline is None:
        return _LIVENESS_S
    return min(max(deadline - time.monotonic(), 0.0), _LIVENESS_S)
