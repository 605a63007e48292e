"""Transfers that threads work on: tickets, deadlines, completions."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from radixrt.cache.pages import Int32
from radixrt.cache.tier import Completion, Outcome, PageRun, TierStats

log = logging.getLogger(__name__)

CLOSE_WAIT_S = 2.0
"""How long ``close`` waits for a thread; one that a device holds up is left behind."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A run that is to be read into, or written from, pages of the pool above."""

    ticket: int
    run: PageRun
    pages: Int32
    deadline: float
    asked: float


class Workers:
    """Threads that take jobs from one queue; every job ends in one completion, whatever happens.

    ``work(jobs)``, up to ``max_jobs`` of them, ends each of its jobs by ``end``. If it raises, the
    jobs it did not end have failed.
    """

    def __init__(
        self,
        name: str,
        num_threads: int,
        work: Callable[[list[Job]], None],
        clock: Callable[[], float],
        *,
        max_jobs: int = 1,
    ) -> None:
        self._work = work
        self._clock = clock
        self._max_jobs = max_jobs
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open: dict[int, Job] = {}
        self._is_closed = False
        self.num_timeouts = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True)
            for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_open(self) -> int:
        """Jobs that have not ended."""
        return len(self._open)

    def is_stalled(self, grace_s: float = 0.0) -> bool:
        """Whether some job has not ended although its deadline is past."""
        now = self._clock()
        with self._lock:
            return any(now > job.deadline + grace_s for job in self._open.values())

    def submit(self, ticket: int, run: PageRun, pages: Int32, deadline: float) -> None:
        """Queue a job; its ticket was not given before."""
        job = Job(ticket, run, pages, deadline, time.perf_counter())
        with self._lock:
            if self._is_closed:
                self._ended.put(Completion(ticket, "closed", 0, 0, 0.0))
                return
            self._open[ticket] = job
        self._queue.put(job)

    def end(self, job: Job, outcome: Outcome, num_pages: int, num_bytes: int) -> None:
        """End a job, once; the pages are no longer looked at."""
        with self._lock:
            if self._open.pop(job.ticket, None) is None:
                return
            self.num_timeouts += outcome == "timeout"
        seconds = time.perf_counter() - job.asked
        self._ended.put(Completion(job.ticket, outcome, num_pages, num_bytes, seconds))

    def poll(self) -> Sequence[Completion]:
        """Return what has ended since the last call."""
        ended = []
        while not self._ended.empty():
            ended.append(self._ended.get())
        return ended

    def wait(self, timeout_s: float) -> bool:
        """Wait until no job is open; False when it took longer."""
        end = time.monotonic() + timeout_s
        while self._open:
            if time.monotonic() > end:
                return False
            time.sleep(0.0005)
        return True

    def close(self) -> None:
        """End what is queued as ``closed``, and wait for what is under way; idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(CLOSE_WAIT_S)

    def _run(self) -> None:
        while True:
            jobs = self._next()
            if not jobs:
                return
            due = [job for job in jobs if not self._is_late(job)]
            if not due:
                continue
            try:
                self._work(due)
            except Exception:
                log.exception("a transfer failed")
            for job in due:
                self.end(job, "failed", 0, 0)

    def _next(self) -> list[Job]:
        first = self._queue.get()
        if first is None:
            return []
        jobs = [first]
        while len(jobs) < self._max_jobs and not self._queue.empty():
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._queue.put(None)
                break
            jobs.append(job)
        return jobs

    def _is_late(self, job: Job) -> bool:
        if self._is_closed:
            self.end(job, "closed", 0, 0)
            return True
        if self._clock() > job.deadline:
            self.end(job, "timeout", 0, 0)
            return True
        return False


class Transfers:
    """The transfers of a store: what ``Tier`` says of tickets, deadlines and totals.

    ``read(job)`` returns how a read ended and how many leading pages came; ``write(jobs)``, up to
    ``max_puts`` of them, the same of each. They run in threads: so many that read, one that writes.
    A put has no deadline, for nobody waits for it.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[Job], tuple[Outcome, int]],
        write: Callable[[list[Job]], list[tuple[Outcome, int]]],
        *,
        page_bytes: int,
        stats: TierStats,
        clock: Callable[[], float],
        num_readers: int,
        max_puts: int = 1,
    ) -> None:
        self._read = read
        self._write = write
        self._page_bytes = page_bytes
        self._stats = stats
        self._tickets = itertools.count(1)
        self._refused: list[Completion] = []
        self._readers = Workers(f"{name}-read", num_readers, self._read_one, clock)
        self._writer = Workers(f"{name}-write", 1, self._write_some, clock, max_jobs=max_puts)

    @property
    def num_reading(self) -> int:
        """Reads that have not ended."""
        return self._readers.num_open

    @property
    def num_open(self) -> int:
        """Transfers that have not ended."""
        return self._readers.num_open + self._writer.num_open

    @property
    def num_timeouts(self) -> int:
        """Reads that ended by their deadline."""
        return self._readers.num_timeouts

    def is_stalled(self) -> bool:
        """Whether some read has not ended although its deadline is past."""
        return self._readers.is_stalled()

    def get(self, run: PageRun, pages: Int32, deadline: float) -> int:
        """See ``Tier``."""
        ticket = next(self._tickets)
        self._readers.submit(ticket, run.with_keys(), pages, deadline)
        return ticket

    def put(self, run: PageRun, pages: Int32) -> int:
        """See ``Tier``."""
        ticket = next(self._tickets)
        self._writer.submit(ticket, run.with_keys(), pages, float("inf"))
        return ticket

    def refuse(self, outcome: Outcome) -> int:
        """Return the ticket of a put that ended at once."""
        ticket = next(self._tickets)
        self._stats.refused += 1
        self._refused.append(Completion(ticket, outcome, 0, 0, 0.0))
        return ticket

    def wrote(self, num_pages: int) -> None:
        """Count pages as written: fewer than were put, where some were there already."""
        self._stats.written += num_pages
        self._stats.bytes_written += num_pages * self._page_bytes

    def poll(self) -> Sequence[Completion]:
        """See ``Tier``."""
        refused, self._refused = self._refused, []
        return [*refused, *self._readers.poll(), *self._writer.poll()]

    def fence(self, timeout_s: float) -> bool:
        """Wait until every put before has ended; False when it took longer."""
        return self._writer.wait(timeout_s)

    def close(self) -> None:
        """See ``Tier``."""
        self._readers.close()
        self._writer.close()

    def _read_one(self, jobs: list[Job]) -> None:
        (job,) = jobs
        outcome, num_pages = self._read(job)
        num_bytes = num_pages * self._page_bytes
        self._stats.read += num_pages
        self._stats.bytes_read += num_bytes
        self._readers.end(job, outcome, num_pages, num_bytes)

    def _write_some(self, jobs: list[Job]) -> None:
        for job, (outcome, num_pages) in zip(jobs, self._write(jobs), strict=True):
            self._writer.end(job, outcome, num_pages, num_pages * self._page_bytes)
