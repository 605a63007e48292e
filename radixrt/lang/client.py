"""A session with a runtime: calls over a ``Transport``, answered by one reader thread."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from radixrt.errors import (
    EngineFault,
    InvalidArgument,
    RadixError,
    RuntimeUnavailable,
    TransportError,
    failure,
)
from radixrt.lang.call import Call, Result, Signal, wait_until
from radixrt.lang.pauses import Pauses
from radixrt.protocol import (
    Append,
    Cancel,
    Chosen,
    Chunk,
    Explain,
    Failed,
    Finished,
    Flush,
    Goodbye,
    Hello,
    Inspect,
    Limits,
    ModelInfo,
    Ping,
    Pong,
    Reply,
    Restore,
    Save,
    State,
    Stats,
    ToClient,
    ToRuntime,
    Welcome,
)
from radixrt.transport import Transport

MISSED_PINGS = 3
"""Unanswered pings after which the engine counts as stuck."""

_TICK_S = 0.1
"""How long the reader waits for messages before it looks after pings and dropped branches."""


class Retiring(Protocol):
    """What can be dropped by the garbage collector and then has to be closed at the runtime."""

    def closing(self) -> list[ToRuntime]:
        """The messages that close it."""

    def refuse(self, error: RadixError) -> None:
        """The runtime refused one of its operations that is no call."""


class Client:
    """Sends operations and matches answers to calls. Safe to use from many threads.

    Every call ends: with its answer, or with an error when the runtime stops answering pings
    (``EngineFault``), when the connection breaks or when the client is closed (``TransportError``).
    """

    def __init__(self, transport: Transport, *, name: str = "", timeout_s: float = 10.0) -> None:
        """Open a session; raises ``RuntimeUnavailable`` when nobody answers in ``timeout_s``."""
        self._transport = transport
        self._ids = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._branches: dict[int, Retiring] = {}
        self._retired: deque[tuple[int, Retiring]] = deque()
        self._state = Signal()
        self.pauses = Pauses()
        self._admission = threading.Lock()
        self._error: RadixError | None = None
        self._welcome: Welcome | None = None
        self._phase = ""
        self._closing = False
        self._unanswered = 0
        self._next_ping = 0.0
        self._tick_s = _TICK_S
        self._reader = threading.Thread(target=self._read, name="radixrt-client", daemon=True)
        self._reader.start()
        try:
            self._transport.send([Hello(client=name, watch=True)])
            self._await_welcome(timeout_s)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------ the session

    @property
    def limits(self) -> Limits:
        """What the runtime accepts."""
        return self._session.limits

    @property
    def model(self) -> ModelInfo:
        """The model that is served."""
        return self._session.model

    @property
    def _session(self) -> Welcome:
        assert self._welcome is not None
        return self._welcome

    @property
    def is_open(self) -> bool:
        return self._error is None and self._reader.is_alive()

    def close(self) -> None:
        """End the session: every call that is still waited for ends with an error. Idempotent."""
        self._closing = True
        self._fail(TransportError("the client is closed"))
        self._transport.close()
        if threading.current_thread() is not self._reader:
            self._reader.join(timeout=5.0)

    # ------------------------------------------------------------ operations

    def new_id(self) -> int:
        """Return an id for a branch that no other branch or call has."""
        return next(self._ids)

    def new_call(self, expected: type[Result], signal: Signal | None = None) -> Call:
        """Return a call that is not sent yet."""
        return Call(next(self._ids), expected, signal or Signal())

    def admit(self, call: Call) -> None:
        """Register a call about to be sent; waits while as many are in flight as the runtime
        takes."""
        with self._admission:
            if not self._has_room():
                wait_until(
                    self._state, self._has_room, deadline=None, is_connected=lambda: self.is_open
                )
            self._calls[call.id] = call

    def send(self, messages: Sequence[ToRuntime], call: Call | None = None) -> None:
        """Send messages at once, in order. ``call`` is the admitted one that they make.

        A failure to send ends the call; without a call it is raised.
        """
        try:
            if self._error is not None:
                raise self._error.with_traceback(None)
            self._check_size(messages)
            self._transport.send([*self._dropped(), *messages])
        except RadixError as error:
            if call is None:
                raise
            self.withdraw(call, error)

    def withdraw(self, call: Call, error: RadixError) -> None:
        """End an admitted call that was never sent."""
        self._calls.pop(call.id, None)
        call.fail(error)
        self._state.notify()

    def cancel(self, calls: Sequence[Call], error: RadixError) -> None:
        """End calls now with ``error`` and tell the runtime, without waiting for its answer."""
        running = [call for call in calls if not call.is_done]
        for call in running:
            call.fail(error)
        if running and self._error is None:
            try:
                self._transport.send([Cancel(call.id) for call in running])
            except TransportError as broken:
                self._fail(broken)

    def ask(
        self,
        message: Stats | Flush | Explain | Inspect | Save | Restore,
        call: Call,
        timeout_s: float,
    ) -> Reply:
        """Send a question and return its answer; ``RuntimeUnavailable`` after ``timeout_s``."""
        self.admit(call)
        self.send([message], call)
        return self.reply(call, timeout_s)

    def reply(self, call: Call, timeout_s: float) -> Reply:
        """Wait for the answer of a question that was sent."""
        deadline = time.monotonic() + timeout_s
        if not self.wait(call, deadline):
            self.cancel([call], RuntimeUnavailable(f"no answer within {timeout_s:g} s"))
        result = call.result
        assert isinstance(result, Reply)
        return result

    def wait(self, call: Call, deadline: float | None) -> bool:
        """Wait for the end of a call; False when ``deadline`` (monotonic seconds) came first."""
        return wait_until(
            call.signal,
            lambda: call.is_done,
            deadline=deadline,
            is_connected=lambda: self.is_open,
        )

    # ------------------------------------------------------------ branches

    def watch(self, branch_id: int, branch: Retiring) -> None:
        """Report refusals of a branch's operations to it."""
        self._branches[branch_id] = branch

    def forget(self, branch_id: int) -> None:
        """The branch is closed."""
        self._branches.pop(branch_id, None)

    def retire(self, branch_id: int, branch: Retiring) -> None:
        """Close a branch soon. Takes no lock: the garbage collector may call it anywhere."""
        self._retired.append((branch_id, branch))

    def _dropped(self) -> list[ToRuntime]:
        messages: list[ToRuntime] = []
        while self._retired:
            try:
                branch_id, branch = self._retired.popleft()
            except IndexError:  # another thread took the last one
                break
            messages += branch.closing()
            self.forget(branch_id)
        return messages

    def _has_room(self) -> bool:
        return self._error is not None or len(self._calls) < self.limits.max_calls

    def _check_size(self, messages: Sequence[ToRuntime]) -> None:
        limit = self.limits.max_frame_bytes
        for message in messages:
            if not isinstance(message, Append):
                continue
            # A character takes at most six bytes in JSON, a token id eleven.
            size = sum(6 * len(part.text) + 11 * len(part.token_ids) for part in message.parts)
            if size > limit:
                size = sum(
                    len(part.text.encode()) + 8 * len(part.token_ids) for part in message.parts
                )
            if size > limit:
                raise InvalidArgument(
                    "text", f"{size} bytes", f"append at most {limit} bytes between two calls"
                )

    # ------------------------------------------------------------ the reader thread

    def _read(self) -> None:
        try:
            while not self._closing:
                for message in self._transport.receive(self._tick_s):
                    self._dispatch(message)
                self._tend()
        except RadixError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(TransportError(f"the client's reader failed: {error!r}"))
            raise

    def _dispatch(self, message: ToClient) -> None:
        match message:
            case Chunk():
                if (call := self._calls.get(message.call)) is not None:
                    call.add_chunk(message)
            case Finished() | Chosen() | Reply():
                if (call := self._answered(message.call)) is not None:
                    call.resolve(message)
            case Failed():
                self._dispatch_failure(message)
            case Pong():
                self._unanswered = 0
            case Welcome():
                self._begin(message)
            case State():
                self._phase = f"{message.phase}: {message.detail}".removesuffix(": ")
            case Goodbye():
                self._fail(TransportError(f"the runtime left: {message.reason or 'no reason'}"))

    def _dispatch_failure(self, message: Failed) -> None:
        error = failure(message.code, message.message, retryable=message.retryable)
        if message.call is not None:
            if (call := self._answered(message.call)) is not None:
                call.fail(error)
        elif message.branch is not None:
            if (branch := self._branches.get(message.branch)) is not None:
                branch.refuse(error)
        else:
            # Which call it was about is unknown, and no call may wait for ever.
            self._fail(error)

    def _answered(self, call_id: int) -> Call | None:
        call = self._calls.pop(call_id, None)
        if call is not None:
            self._state.notify()
        return call

    def _begin(self, welcome: Welcome) -> None:
        before, self._welcome = self._welcome, welcome
        self._unanswered = 0
        self._next_ping = time.monotonic() + welcome.limits.ping_interval_s
        self._tick_s = min(_TICK_S, welcome.limits.ping_interval_s)
        if before is not None and before.epoch != welcome.epoch:
            self._end_calls(EngineFault("the runtime was restarted and lost its branches"))
        self._state.notify()

    def _await_welcome(self, timeout_s: float) -> None:
        arrived = wait_until(
            self._state,
            lambda: self._welcome is not None or self._error is not None,
            deadline=time.monotonic() + timeout_s,
            is_connected=lambda: self.is_open,
        )
        if self._error is not None:
            raise self._error.with_traceback(None)
        if not arrived:
            what = f"is {self._phase}" if self._phase else "did not answer; is it running"
            raise RuntimeUnavailable(
                f"after {timeout_s:g} s the runtime {what}; wait for it, or give a longer timeout_s"
            )

    def _tend(self) -> None:
        """Close what was dropped and ping when it is time."""
        messages = self._dropped()
        if self._welcome is not None and time.monotonic() >= self._next_ping:
            interval = self.limits.ping_interval_s
            if self._unanswered >= MISSED_PINGS:
                self._end_calls(
                    EngineFault(
                        f"the engine has answered no ping for {self._unanswered * interval:g} s",
                        retryable=True,
                    )
                )
            self._unanswered += 1
            self._next_ping = time.monotonic() + interval
            messages.append(Ping(self.new_id()))
        if messages:
            self._transport.send(messages)

    def _end_calls(self, error: RadixError) -> None:
        calls = list(self._calls.values())
        self._calls.clear()
        for call in calls:
            call.fail(error)
        self._state.notify()

    def _fail(self, error: RadixError) -> None:
        """End the session with an error; the first one stays."""
        if self._error is None:
            self._error = error
        self._end_calls(error)
