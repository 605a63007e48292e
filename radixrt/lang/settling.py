"""Waiting for the calls of a branch, and the failure that is raised when one of them failed."""

from __future__ import annotations

import time
from collections.abc import Callable

from radixrt.errors import BranchFailed, DeadlineExceeded, ProgramError
from radixrt.lang.branch import Branch
from radixrt.lang.call import Watch, wait_until_in_loop
from radixrt.lang.client import Client
from radixrt.lang.transcript import CallStep, Transcript


class Settling:
    """The calls of a branch on their way to their ends.

    Every wait ends: with the result, with the failure, with the call's deadline, or with the loss
    of the connection.
    """

    def __init__(self, client: Client, branch: Branch, transcript: Transcript) -> None:
        self._client = client
        self._branch = branch
        self._transcript = transcript
        self._was_raised = False

    def finish(self, step: CallStep) -> None:
        """Wait for a call; raises the branch's first failure if it failed."""
        self._wait(step)
        if step.call.error is not None:
            raise self._raised(self._first_failure(step))

    def settle(self) -> None:
        """Wait for every call; raises the first failure unless it was raised to the body."""
        for step in self.steps():
            self._wait(step)
        self.raise_unmet_failure()

    async def settle_in_loop(self) -> None:
        """``settle`` for a running event loop."""
        for step in self.steps():
            await self.wait_in_loop(step)
        self.raise_unmet_failure()

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, on any thread, as soon as every call has ended."""
        running = [step.call for step in self.steps() if not step.call.is_done]
        Watch(self._branch.signal, running, callback).begin()

    def expire(self) -> None:
        """End the calls whose deadline has passed."""
        now = time.monotonic()
        for step in self.steps():
            if not step.call.is_done and step.deadline is not None and step.deadline <= now:
                self._expire(step)

    def raise_unmet_failure(self) -> None:
        """Raise the first failure unless it was raised before, so that the body has handled it."""
        if not self._was_raised:
            failed = any(step.call.error is not None for step in self.steps())
            if failed or self._branch.refusal is not None:
                raise self._raised(self._first_failure())

    def steps(self, end: int | None = None) -> list[CallStep]:
        """Return the calls among the first ``end`` steps, or among all."""
        return [step for step in self._transcript.steps[:end] if isinstance(step, CallStep)]

    def finish_all(self, end: int | None = None) -> None:
        """Wait for the calls among the first ``end`` steps; raises the first failure.

        Of all steps, a refusal to append is a failure as well.
        """
        for step in self.steps(end):
            self.finish(step)
        if end is None and self._branch.refusal is not None:
            raise self._raised(self._first_failure())

    def _wait(self, step: CallStep) -> None:
        if not step.call.is_done and not self._client.wait(step.call, step.deadline):
            self._expire(step)

    async def wait_in_loop(self, step: CallStep) -> None:
        """Wait for a call in the running event loop; raises nothing of its."""
        if not step.call.is_done and not await wait_until_in_loop(
            step.call.signal,
            lambda: step.call.is_done,
            deadline=step.deadline,
            is_connected=lambda: self._client.is_open,
        ):
            self._expire(step)

    def _expire(self, step: CallStep) -> None:
        error = DeadlineExceeded("it did not end within its deadline")
        self._client.cancel([step.call], error)

    def _first_failure(self, until: CallStep | None = None) -> ProgramError:
        """The failure that came first, of all steps or of those up to one that has failed."""
        failed: CallStep | None = None
        for step in self.steps():
            if step.call.error is not None:
                failed = step
                if not isinstance(step.call.error, BranchFailed):
                    break
            if step is until:
                break
        refusal = self._branch.refusal
        if refusal is not None and (failed is None or isinstance(failed.call.error, BranchFailed)):
            written = [step for step in self._transcript.steps if not isinstance(step, CallStep)]
            where = str(written[-1].where) if written else "its fork"
            return ProgramError("append", where, refusal)
        assert failed is not None
        assert failed.call.error is not None
        return ProgramError(failed.node.op, str(failed.where), failed.call.error)

    def _raised(self, error: ProgramError) -> ProgramError:
        self._was_raised = True
        return error
