"""Generations whose value the client itself has to accept, because only its type can say.

An attempt runs on the branch while a *mark* keeps the branch as it was before. A refused attempt is
taken back: the branch goes on as a copy of the mark and the value is generated again, with the
texts refused so far excluded, so that the branch afterwards holds the accepted text and no other.

    mark   ──┐ (a fork, as the branch was)
    branch ──┴── attempt 1: refused      … closed
           └──── attempt 2: accepted     … the branch from here on

Reading runs on a thread of its own: it is the user's code, and the client's reader must not wait.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from radixrt.errors import RadixError, ValueRefused
from radixrt.lang.call import Call, Signal
from radixrt.protocol import Close, Constraint, Finished, ToRuntime, Usage

if TYPE_CHECKING:
    from radixrt.lang.branch import Branch

Check = Callable[[Finished], list[Any]]
"""Returns the values of a result's outputs; raises ``ValueRefused`` for one that has none."""


class Mark:
    """A branch at the runtime that is kept to go back to."""

    def __init__(self, branch_id: int) -> None:
        self.id = branch_id

    def closing(self) -> list[ToRuntime]:
        return [Close(self.id)]

    def refuse(self, error: RadixError) -> None:
        """The branch it was copied from reports this."""


class CheckedCall(Call):
    """The call that a program waits for: it ends with the first attempt that is accepted.

    ``attempt`` is the one that runs; its chunks show what may still be refused.
    """

    __slots__ = ("attempt", "deadline", "num_attempts", "values")

    def __init__(self, signal: Signal, deadline: float | None) -> None:
        """``deadline`` (monotonic seconds) bounds all attempts together."""
        super().__init__(0, Finished, signal)
        self.deadline = deadline
        self.attempt: Call | None = None
        self.num_attempts = 0
        self.values: list[Any] = []
        """What the accepted outputs were read as."""


class Attempts:
    """Runs the attempts of one checked call, one after the other."""

    def __init__(
        self,
        call: CheckedCall,
        branch: Branch,
        mark: Mark,
        constraint: Constraint,
        check: Check,
        executor: Executor,
        again: Callable[[Constraint], Call],
    ) -> None:
        """``again`` generates on a copy of the mark and returns the new attempt."""
        self._call = call
        self._branch = branch
        self._mark = mark
        self._constraint = constraint
        self._check = check
        self._executor = executor
        self._again = again
        self._spent = Usage()

    def watch(self, attempt: Call) -> None:
        """Follow an attempt to its end."""
        call = self._call
        call.attempt, call.id = attempt, attempt.id
        call.num_attempts += 1
        ends = itertools.count()

        def progress() -> None:
            call.signal.notify()
            if attempt.is_done and next(ends) == 0:  # once, whoever sees it first
                self._ended(attempt)

        attempt.signal.listen(progress)
        if attempt.is_done:  # it ended before it was listened to
            progress()

    def _ended(self, attempt: Call) -> None:
        if attempt.error is not None:
            self._finish(attempt.error)
            return
        try:
            self._executor.submit(self._judge, attempt)
        except RuntimeError as error:  # the backend was shut down
            self._finish(ValueRefused(f"its value cannot be checked any more: {error}"))

    def _judge(self, attempt: Call) -> None:
        result = attempt.result
        assert isinstance(result, Finished)
        try:
            self._call.values = self._check(result)
        except ValueRefused as refusal:
            self._refused(result, refusal)
        except BaseException as error:  # a bug in a validator ends the call, not the thread
            self._finish(ValueRefused(f"its validator failed: {error!r}"))
        else:
            self._finish(None, result)

    def _refused(self, result: Finished, refusal: ValueRefused) -> None:
        if self._call.is_done:  # cancelled meanwhile
            self._finish(None)
            return
        self._spent = _added(self._spent, result.usage)
        texts = tuple(output.text for output in result.outputs)
        if self._call.num_attempts > self._constraint.retries:
            tries = self._call.num_attempts
            self._finish(ValueRefused(f"{refusal} (attempt {tries} of {tries})"))
            return
        exclude = (*self._constraint.exclude, *texts)
        self._constraint = dataclasses.replace(self._constraint, exclude=exclude)
        try:
            self.watch(self._again(self._constraint))
        except RadixError as error:
            self._finish(error)

    def _finish(self, error: RadixError | None, result: Finished | None = None) -> None:
        if result is not None:
            extra = self._call.num_attempts - 1
            outputs = tuple(
                dataclasses.replace(output, attempts=output.attempts + extra)
                for output in result.outputs
            )
            usage = _added(self._spent, result.usage)
            result = dataclasses.replace(result, outputs=outputs, usage=usage)
            self._branch.release(self._mark)
            self._call.resolve(result)
            return
        if error is not None:
            self._branch.poison(error)
            self._call.fail(error)
        self._branch.release(self._mark)


def _added(a: Usage, b: Usage) -> Usage:
    names = Usage.__dataclass_fields__
    return Usage(**{name: getattr(a, name) + getattr(b, name) for name in names})
