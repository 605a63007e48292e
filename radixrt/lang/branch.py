"""The client's side of a branch: operations are queued, merged and sent as one message a step.

A branch is opened with the first message that needs it. Text is merged until a generation, a
selection, a fork or a read needs it, and then travels with that operation.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace

from radixrt.errors import BranchFailed, Cancelled, DeadlineExceeded, RadixError
from radixrt.lang.call import Call, Signal, wait_until
from radixrt.lang.checked import Attempts, Check, CheckedCall, Mark
from radixrt.lang.client import Client
from radixrt.lang.source import Where
from radixrt.protocol import (
    Append,
    CacheUse,
    Cancel,
    Chosen,
    Close,
    Constraint,
    Credit,
    Explain,
    Finished,
    Generate,
    Hold,
    Method,
    Open,
    Part,
    Read,
    Release,
    Reply,
    Sampling,
    Select,
    ToRuntime,
)

STREAM_CREDIT = 64
"""Chunks of a streamed call that may be under way to a reader that has not taken them yet."""


class Branch:
    """One branch at the runtime. Operations may be sent from one thread at a time."""

    def __init__(
        self,
        client: Client,
        *,
        parent: Branch | None = None,
        tenant: str = "",
        cache: CacheUse = "shared",
    ) -> None:
        self._client = client
        self._tenant = tenant
        self._cache = cache
        self._parent = parent
        self._id = client.new_id()
        self._signal = Signal()
        self._lock = threading.Lock()
        self._text: list[str] = []
        self._parts: list[Part] = []
        self._calls: list[Call] = []
        self._is_open = False
        self._is_kept = False
        self._last: tuple[Where, Call] | None = None
        self._end_error: RadixError | None = None
        self._refusal: RadixError | None = None
        self._poison: RadixError | None = None
        self._unchecked: CheckedCall | None = None

    @property
    def signal(self) -> Signal:
        """Notified when one of the branch's calls makes progress."""
        return self._signal

    @property
    def is_closed(self) -> bool:
        return self._end_error is not None

    @property
    def refusal(self) -> RadixError | None:
        """Why the runtime refused an append or an open, of this branch or of one it came from."""
        if self._refusal is not None or self._parent is None:
            return self._refusal
        return self._parent.refusal

    def refuse(self, error: RadixError) -> None:
        if self._refusal is None:
            self._refusal = error
            self._signal.notify()

    # ------------------------------------------------------------ operations

    def append(self, part: Part) -> None:
        """Queue a part; sent with the next operation that needs it."""
        with self._lock:
            if part.kind == "text":
                self._text.append(part.text)
            else:
                self._merge_text()
                self._parts.append(part)

    def generate(
        self,
        sampling: Sampling,
        constraint: Constraint | None,
        *,
        stream: bool,
        deadline_s: float | None,
        site: Where,
        heal: bool = False,
        trace: bool = False,
    ) -> Call:
        self._await_check()
        call = self._client.new_call(Finished, self._signal)
        message = Generate(
            call.id,
            self._id,
            sampling,
            constraint,
            stream=stream,
            credit=STREAM_CREDIT if stream else 0,
            deadline_s=deadline_s,
            pause_s=self._went_on(site, call),
            heal=heal,
            trace=trace,
        )
        self._send([message], call)
        return call

    def generate_checked(
        self,
        message: Callable[[Constraint], Generate],
        constraint: Constraint,
        check: Check,
        executor: Executor,
        deadline: float | None,
    ) -> CheckedCall:
        """Generate until ``check`` accepts a result, at most ``constraint.retries`` times again.

        ``message`` makes a generation; its call and branch are filled in here. Operations that come
        after it wait until it has ended.
        """
        client, call = self._client, CheckedCall(self._signal, deadline)
        mark = Mark(client.new_id())

        def attempt_of(constraint: Constraint) -> tuple[Call, Generate]:
            attempt = client.new_call(Finished, Signal())
            return attempt, replace(message(constraint), call=attempt.id)

        def again(constraint: Constraint) -> Call:
            attempt, generate = attempt_of(constraint)
            self._rewind(mark, attempt, generate)
            return attempt

        attempt, generate = attempt_of(constraint)
        self._await_check()
        operations: list[ToRuntime] = [
            Open(mark.id, self._id),
            replace(generate, branch=self._id),
        ]
        self._send(operations, attempt)
        self._unchecked = call
        Attempts(call, self, mark, constraint, check, executor, again).watch(attempt)
        return call

    def select(
        self,
        options: tuple[str | Constraint, ...],
        method: Method,
        *,
        deadline_s: float | None,
        site: Where,
        max_tokens: int = 64,
    ) -> Call:
        self._await_check()
        call = self._client.new_call(Chosen, self._signal)
        message = Select(
            call.id,
            self._id,
            options,
            method,
            deadline_s,
            pause_s=self._went_on(site, call),
            max_tokens=max_tokens,
        )
        self._send([message], call)
        return call

    def hold(self, ttl_s: float, priority: int) -> None:
        """Ask the runtime to keep what the branch has cached; ``ttl_s`` 0 takes it back."""
        self._send([Hold(self._id, ttl_s, priority)])

    def let_go(self) -> None:
        """Tell the runtime that what the branch alone has cached may go first."""
        self._send([Release(self._id)])

    def explain(self) -> Call:
        call = self._client.new_call(Reply, self._signal)
        self._send([Explain(call.id, self._id)], call)
        return call

    def read(self) -> Call:
        self._await_check()
        call = self._client.new_call(Reply, self._signal)
        self._send([Read(call.id, self._id)], call)
        return call

    def fork(self, size: int) -> list[Branch]:
        """Return ``size`` copies of the branch as it is now; sent at once, no wait but for a value
        that is still being checked."""
        self._await_check()
        children = [Branch(self._client, parent=self) for _ in range(size)]
        for child in children:
            child._is_open = True
            self._client.watch(child._id, child)
        try:
            self._send([Open(child._id, self._id) for child in children])
        except RadixError as error:
            self.refuse(error)
        for child in children:
            child._poison = self._poison
        return children

    def poison(self, error: RadixError) -> None:
        """Nothing can follow: the branch's last generation was never accepted."""
        self._poison = error

    def release(self, mark: Mark) -> None:
        """Close a branch that was kept to go back to."""
        self._client.retire(mark.id, mark)

    def grant(self, call: Call, chunks: int) -> None:
        """Let the runtime send more chunks of a streamed call."""
        if not call.is_done:
            with contextlib.suppress(RadixError):  # the call itself ends with the error
                self._client.send([Credit(call.id, chunks)])

    def cancel(self, error: RadixError) -> None:
        """End the branch's calls that still run."""
        self._client.cancel(self._running(), error)

    def close(self, error: RadixError | None = None) -> None:
        """End the branch: calls that still run and operations to come fail with ``error``
        (``Cancelled``). Idempotent."""
        error = error or Cancelled("the program's state was closed")
        with self._lock:
            if self._end_error is not None:
                return
            self._end_error = error
        self.cancel(error)
        self._client.retire(self._id, self)

    def leave(self) -> None:
        """``close``, but for what is cached, which others may want."""
        self._is_kept = True
        self.close()

    def retire(self) -> None:
        """Close from the garbage collector: takes no lock, sends nothing itself."""
        if self._end_error is None:
            self._client.retire(self._id, self)

    def closing(self) -> list[ToRuntime]:
        """The messages that end the branch at the runtime."""
        running = self._running()
        messages: list[ToRuntime] = [Cancel(call.id) for call in running]
        for call in running:
            call.fail(Cancelled("the program's state is gone"))
        if self._is_open:
            self._is_open = False
            messages.append(Close(self._id, keep=self._is_kept))
        return messages

    # ------------------------------------------------------------ sending

    def _went_on(self, site: Where, call: Call) -> float | None:
        """Note how long the branch has paused before a call; return how long it is expected to
        pause after it."""
        pauses = self._client.pauses
        if self._last is not None:
            before, answered = self._last
            is_late = answered.is_done and answered.done_at > 0.0
            pauses.note(before, time.monotonic() - answered.done_at if is_late else 0.0)
        self._last = site, call
        return pauses.expected(site)

    def _send(self, operations: list[ToRuntime], call: Call | None = None) -> None:
        """Send what is queued and then ``operations``, as one message.

        Operations name the branch's id, so whoever makes them waits for ``_await_check`` before.
        """
        if call is not None and self._poison is not None:
            self._client.admit(call)
            error = BranchFailed(f"an earlier operation of the branch failed: {self._poison}")
            self._client.withdraw(call, error)
            return
        if call is not None:
            self._client.admit(call)  # may wait, so not under the lock that ``close`` takes
        with self._lock:
            if self._end_error is not None:
                if call is None:
                    raise self._end_error.with_traceback(None)
                self._client.withdraw(call, self._end_error)
                return
            messages: list[ToRuntime] = []
            if not self._is_open:
                self._is_open = True
                self._client.watch(self._id, self)
                messages.append(Open(self._id, None, self._tenant, self._cache))
            self._merge_text()
            if self._parts:
                messages.append(Append(self._id, tuple(self._parts)))
                self._parts.clear()
            if call is not None:
                self._calls = self._running()
                self._calls.append(call)
            self._client.send([*messages, *operations], call)

    def _rewind(self, mark: Mark, call: Call, generate: Generate) -> None:
        """Become a copy of ``mark`` and generate there. What is queued stays queued."""
        self._client.admit(call)
        with self._lock:
            if self._end_error is not None:
                self._client.withdraw(call, self._end_error)
                return
            refused, self._id = self._id, self._client.new_id()
            self._client.forget(refused)
            self._client.watch(self._id, self)
            self._calls = [*self._running(), call]
            generate = replace(generate, branch=self._id)
            self._client.send([Open(self._id, mark.id), generate, Close(refused)], call)

    def _await_check(self) -> None:
        """Wait until the value of the last generation is accepted: the next operation needs it."""
        call = self._unchecked
        if call is not None:
            if not wait_until(
                self._signal,
                lambda: call.is_done,
                deadline=call.deadline,
                is_connected=lambda: self._client.is_open,
            ):
                error = DeadlineExceeded("it did not end within its deadline")
                self._client.cancel([call], error)
                self._poison = error
            self._unchecked = None

    def _merge_text(self) -> None:
        if self._text:
            self._parts.append(Part("text", "".join(self._text)))
            self._text.clear()

    def _running(self) -> list[Call]:
        return [call for call in self._calls if not call.is_done]
