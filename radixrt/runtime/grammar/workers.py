"""Threads for what takes longer than a step may: compiling and validating."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from radixrt.runtime.grammar.base import GrammarError, GrammarTimeout
from radixrt.runtime.grammar.verdicts import NICENESS, QUICK_S

MOST_ABANDONED = 8
"""Jobs over their time whose threads are replaced; beyond that jobs are refused."""

_STACK_BYTES = 64 * 1024 * 1024

Work = Callable[[float], Any]
"""Does something within so many seconds of processor time, or raises ``GrammarTimeout``; what has
no means to keep to them takes as long as it takes."""


@dataclass(slots=True, eq=False)
class Job:
    """Work of a thread, which may take ``cpu_s`` seconds of processor time and ``timeout_s`` in
    all. ``result`` or ``error`` is there once ``is_done``; ``began`` is when the thread took it up,
    in monotonic seconds, None before. ``is_long``: it has taken longer than ``QUICK_S`` before."""

    work: Work
    timeout_s: float
    cpu_s: float = QUICK_S
    began: float | None = None
    result: Any = None
    error: BaseException | None = None
    is_done: bool = False
    is_abandoned: bool = False
    is_long: bool = False

    def run(self) -> None:
        """Do the work and note what comes of it: unless it takes long and has not been known to,
        then it is to be run again."""
        self.began = time.monotonic()
        try:
            self.result = self.work(self.cpu_s if self.is_long else min(self.cpu_s, QUICK_S))
        except GrammarTimeout as error:
            if not self.is_long and self.cpu_s > QUICK_S and not self.is_abandoned:
                self.began, self.is_long = None, True
                return
            self.error = error
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
    """A few daemon threads, and one for jobs that take longer than ``QUICK_S`` of processor time:
    those begin anew there, one after the other, and nobody else waits behind them.

    A thread cannot be stopped: a job over its time is abandoned and, up to a bound, its thread
    replaced, so that it holds nobody else up.

    With ``num_threads`` 0 jobs run in the caller's thread at once.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._long: SimpleQueue[Job | None] = SimpleQueue()
        self._num_started = 0
        self._num_abandoned = 0

    def submit(self, work: Work, timeout_s: float, cpu_s: float = QUICK_S) -> Job:
        """Queue work that may take ``cpu_s`` seconds of processor time, and ``timeout_s`` once it
        has begun. Raises ``GrammarTimeout`` when too many threads are stuck."""
        job = Job(work, timeout_s, cpu_s)
        if self._num_threads == 0:
            while not job.is_done:
                job.run()
            return job
        if self._num_abandoned >= MOST_ABANDONED:
            raise GrammarTimeout(
                f"{self._num_abandoned} constraints are being compiled beyond their time; "
                "try again later"
            )
        if self._num_started == 0:
            for queue in (self._long, *[self._queue] * self._num_threads):
                self._start_thread(queue)
        self._queue.put(job)
        return job

    def abandon_late(self, job: Job) -> bool:
        """Whether a job has taken longer than it may; its thread is then replaced."""
        began = job.began
        if job.is_done or began is None or time.monotonic() - began <= job.timeout_s:
            return False
        if not job.is_abandoned:
            job.is_abandoned = True
            self._num_abandoned += 1
            self._start_thread(self._long if job.is_long else self._queue)
        return True

    def close(self) -> None:
        """Let idle threads end."""
        for _ in range(self._num_started):
            self._queue.put(None)
            self._long.put(None)

    def _start_thread(self, queue: SimpleQueue[Job | None]) -> None:
        self._num_started += 1
        before = threading.stack_size(_STACK_BYTES)
        try:
            name = f"radixrt-grammar-{self._num_started}"
            thread = threading.Thread(target=self._work, args=(queue,), name=name, daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)

    def _work(self, queue: SimpleQueue[Job | None]) -> None:
        if sys.platform == "linux":  # where a thread has a niceness of its own
            os.nice(NICENESS)
        while (job := queue.get()) is not None:
            job.run()
            if job.is_abandoned:
                self._num_abandoned -= 1
                return  # another thread has taken its place
            if not job.is_done:
                self._long.put(job)
            # A waiting thread holds nothing: an error that was raised knows the engine's frames.
            del job
