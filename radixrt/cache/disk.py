"""The disk tier: pages as records of a directory's segments."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.files import Files
from radixrt.cache.pages import Int32
from radixrt.cache.record_store import SEGMENT_BYTES, RecordStore
from radixrt.cache.records import Identity, Layout, identity
from radixrt.cache.tickets import Job, Transfers
from radixrt.cache.tier import Completion, Outcome, PageRun, TierStats

log = logging.getLogger(__name__)

NUM_READERS = 2
MAX_PUTS = 64
"""Puts that one commit takes together."""

FULL_WAIT_S = 5.0
"""How long nothing is written after the device was full or failed."""


class DiskTier:
    """Pages in a directory, over restarts; see ``Tier``. ``pages`` are the host pool's.

    ``data`` uint8 [n, page_bytes] is that pool. A page is one record; see ``RecordStore`` for what
    becomes of records. A put is complete when its records are synced. All puts that wait are one
    commit: written and synced together by the one writer.

    Raises ``ConfigError`` when another process has the directory. ``read_only`` takes no lock and
    writes nothing.
    """

    is_exact = True

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        data: NDArray[np.uint8],
        *,
        quota: int = 1 << 40,
        segment_bytes: int = SEGMENT_BYTES,
        files: Files | None = None,
        read_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
        name: str = "disk",
    ) -> None:
        self.name = name
        self.folder = folder
        self.layout = layout
        self._data = data
        self._clock = clock
        self._read_only = read_only
        self._refuse_until = 0.0
        self._stats = TierStats(capacity=quota // layout.record_bytes)
        self._records = RecordStore(
            folder,
            layout,
            files or Files(),
            self._stats,
            quota=quota,
            segment_bytes=segment_bytes,
            read_only=read_only,
        )
        self._transfers = Transfers(
            f"radixrt-{name}",
            self._read,
            self._write,
            page_bytes=layout.page_bytes,
            stats=self._stats,
            clock=clock,
            num_readers=NUM_READERS,
            max_puts=MAX_PUTS,
        )
        self._is_closed = False

    # ------------------------------------------------------------ tier

    def probe(self, run: PageRun) -> int:
        """See ``Tier``; 0 while reads are stuck: asking again would only wait as well."""
        if self._transfers.is_stalled():
            return 0
        return self._num_leading(run.with_keys())

    def get(self, run: PageRun, pages: Int32, deadline: float) -> int:
        """See ``Tier``."""
        return self._transfers.get(run, pages, deadline)

    def put(self, run: PageRun, pages: Int32, deadline: float) -> int:
        """See ``Tier``; the deadline is not looked at, for nobody waits for a put."""
        if self._read_only or self._clock() < self._refuse_until:
            return self._transfers.refuse("full")
        return self._transfers.put(run, pages)

    def poll(self) -> Sequence[Completion]:
        """See ``Tier``."""
        return self._transfers.poll()

    def drop(self, run: PageRun) -> None:
        """See ``Tier``."""
        for key in run.with_keys().keys[run.first : run.last]:
            self._records.forget(key)

    def stats(self) -> TierStats:
        """See ``Tier``."""
        self._stats.ready = len(self._records)
        self._stats.timeouts = self._transfers.num_timeouts
        return self._stats

    def fence(self, timeout_s: float) -> bool:
        """See ``Tier``: every put before has ended then, and what it wrote is synced."""
        return self._transfers.fence(timeout_s)

    def close(self) -> None:
        """See ``Tier``; seals the open segment."""
        if self._is_closed:
            return
        self._is_closed = True
        self._transfers.close()
        self._records.seal()
        if not self._transfers.num_open:  # else a thread is stuck in a call on one of the files
            self._records.close()

    # ------------------------------------------------------------ what there is

    def num_leading(self, keys: Sequence[bytes]) -> int:
        """Return how many of the first keys are those of pages that are there."""
        return self._records.num_leading(keys)

    @property
    def num_bytes(self) -> int:
        """Bytes of all records on disk, dead ones included."""
        return self._records.num_bytes

    def identities(self) -> Iterator[Identity]:
        """Yield whose pages there are, parents before children; reads their headers."""
        return self._records.identities()

    # ------------------------------------------------------------ in the threads

    def _read(self, job: Job) -> tuple[Outcome, int]:
        header = bytearray(self.layout.header_bytes)
        done = 0
        outcome: Outcome = "ok"
        for index in range(job.run.num_pages):
            if self._clock() > job.deadline:
                return "timeout" if outcome == "ok" else outcome, done
            whose = identity(job.run, job.run.first + index)
            payload = memoryview(self._data[job.pages[index]])
            found = self._records.read(whose, header, payload)
            if outcome == "ok":
                outcome = found
                done += found == "ok"
            if found not in ("ok", "corrupt"):
                break
            # What is behind a damaged record is of no use here, but what else is damaged must be
            # known, or the next restart would stop at the next record, and so on.
        return outcome, done

    def _write(self, jobs: list[Job]) -> list[tuple[Outcome, int]]:
        """Commit puts together."""
        if not self._transfers.num_reading:
            self._records.close_retired()
        new = {}
        for job in jobs:
            for index in range(job.run.num_pages):
                whose = identity(job.run, job.run.first + index)
                if whose.key not in self._records:
                    new[whose.key] = whose, memoryview(self._data[job.pages[index]])
        failure: Outcome = "ok"
        try:
            self._records.append(list(new.values()))
            self._transfers.wrote(len(new))
        except OSError as error:
            failure = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed"
            log.warning("%s: writing failed: %s", self.folder, error)
            self._refuse_until = self._clock() + FULL_WAIT_S
            self._stats.failed += len(new)
        leading = [self._num_leading(job.run) for job in jobs]
        return [
            ("ok" if done == job.run.num_pages else failure, done)
            for job, done in zip(jobs, leading, strict=True)
        ]

    def _num_leading(self, run: PageRun) -> int:
        return self._records.num_leading(run.keys[run.first : run.last])
