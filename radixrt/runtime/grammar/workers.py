"""Threads for what takes longer than a step may: compiling and validating."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from radixrt.runtime.grammar.base import GrammarError, GrammarTimeout

MOST_ABANDONED = 8
"""Jobs over their time whose threads are replaced; beyond that jobs are refused."""

_STACK_BYTES = 64 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Job:
    """Work of a thread. ``result`` or ``error`` is there once ``is_done``; ``began`` is when the
    thread took it up, in monotonic seconds, None before."""

    work: Callable[[], Any]
    timeout_s: float
    began: float | None = None
    result: Any = None
    error: BaseException | None = None
    is_done: bool = False
    is_abandoned: bool = False

    def run(self) -> None:
        """Do the work and note what comes of it."""
        self.began = time.monotonic()
        try:
            self.result = self.work()
        except GrammarError as error:
            self.error = error
        except RecursionError:
            self.error = GrammarError("the constraint is nested too deeply")
        except Exception as error:
            self.error = GrammarError(f"the constraint cannot be used: {error!r}")
        self.is_done = True

    def value(self) -> Any:
        """Return the result or raise what the work raised."""
        if self.error is not None:
            raise self.error
        return self.result


class Workers:
    """A few daemon threads. A thread cannot be stopped: a job over its time is abandoned and, up to
    a bound, its thread replaced, so that it holds nobody else up.

    With ``num_threads`` 0 jobs run in the caller's thread at once.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._num_started = 0
        self._num_abandoned = 0

    def submit(self, work: Callable[[], Any], timeout_s: float) -> Job:
        """Queue work. Raises ``GrammarTimeout`` when too many threads are stuck."""
        job = Job(work, timeout_s)
        if self._num_threads == 0:
            job.run()
            return job
        if self._num_abandoned >= MOST_ABANDONED:
            raise GrammarTimeout(
                f"{self._num_abandoned} constraints are being compiled beyond their time; "
                "try again later"
            )
        while self._num_started < self._num_threads:
            self._start_thread()
        self._queue.put(job)
        return job

    def abandon_late(self, job: Job) -> bool:
        """Whether a job has taken longer than it may; its thread is then replaced."""
        if job.is_done or job.began is None or time.monotonic() - job.began <= job.timeout_s:
            return False
        if not job.is_abandoned:
            job.is_abandoned = True
            self._num_abandoned += 1
            self._start_thread()
        return True

    def close(self) -> None:
        """Let idle threads end."""
        for _ in range(self._num_started):
            self._queue.put(None)

    def _start_thread(self) -> None:
        self._num_started += 1
        before = threading.stack_size(_STACK_BYTES)
        try:
            name = f"radixrt-grammar-{self._num_started}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        finally:
            threading.stack_size(before)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job.run()
            if job.is_abandoned:
                self._num_abandoned -= 1
                return  # another thread has taken its place
            # A waiting thread holds nothing: an error that was raised knows the engine's frames.
            del job
