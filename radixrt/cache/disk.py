"""The disk tier: pages in append-only segments, found by their keys."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from radixrt.cache import segments
from radixrt.cache.files import Files
from radixrt.cache.pages import Int32
from radixrt.cache.records import Identity, Layout, identity, pack_header, verify
from radixrt.cache.segments import Segment
from radixrt.cache.tickets import Job, Workers
from radixrt.cache.tier import Completion, Outcome, PageRun, TierStats
from radixrt.errors import ConfigError

log = logging.getLogger(__name__)

SEGMENT_BYTES = 256 << 20
SEGMENT_RECORDS = 16_384
"""A segment is full with so many bytes or records; after a crash the last one's are looked at."""

NUM_READERS = 2
MAX_PUTS = 64
"""Puts that one commit takes together."""

FULL_WAIT_S = 5.0
"""How long nothing is written after the device was full or failed."""

Place = tuple[Segment, int]


class DiskTier:
    """Pages in a directory, over restarts; see ``Tier``. ``pages`` are the host pool's.

    ``data`` uint8 [n, page_bytes] is that pool. A page is one record of a segment file, found by
    its key in a dictionary; a record says whose it is and is verified whenever it is read, so
    whatever happens to the files, a wrong page is never returned: it is forgotten, counted and can
    be written again.

    A put is complete when its records are synced. All puts that wait are one commit: written and
    synced together by the one writer. Beyond ``quota`` bytes the segment with the most records that
    are dead or due to go is given up, after half of it at most, what was used last, was copied on.

    One process has a directory at a time; ``ConfigError`` for a second. ``read_only`` takes no
    lock and writes nothing.
    """

    name = "disk"
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
        self._files = files or Files()
        self._clock = clock
        self._quota = quota
        # Several segments within the quota, or giving one up would give everything up.
        most = min(segment_bytes, quota // 4) // layout.record_bytes
        self._segment_records = max(1, min(most, SEGMENT_RECORDS))
        self._read_only = read_only
        self._lock = threading.Lock()
        self._index: dict[bytes, Place] = {}
        self._segments: dict[int, Segment] = {}
        self._open: Segment | None = None
        self._last_number = 0
        self._retired: list[int] = []
        self._refuse_until = 0.0
        self._stats = TierStats(capacity=quota // layout.record_bytes)
        self._lock_file: int | None = None
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
        self._load()
        self._readers = Workers(f"radixrt-{name}-read", NUM_READERS, self._read, clock)
        self._writer = Workers(f"radixrt-{name}-write", 1, self._write, clock, max_jobs=MAX_PUTS)
        self._ended: list[Completion] = []
        self._is_closed = False

    # ------------------------------------------------------------ tier

    def probe(self, run: PageRun) -> int:
        """See ``Tier``; 0 while reads are stuck: asking again would only wait as well."""
        if self._readers.is_stalled():
            return 0
        run = run.with_keys()
        return self._num_leading(run)

    def get(self, run: PageRun, pages: Int32, deadline: float) -> int:
        """See ``Tier``."""
        ticket = self._readers.next_ticket() * 2
        self._readers.submit(ticket, run.with_keys(), pages, deadline)
        return ticket

    def put(self, run: PageRun, pages: Int32, deadline: float) -> int:
        """See ``Tier``; the deadline is not looked at, for nobody waits for a put."""
        ticket = self._writer.next_ticket() * 2 + 1
        if self._read_only or self._clock() < self._refuse_until:
            self._stats.refused += 1
            self._ended.append(Completion(ticket, "full", 0, 0, 0.0))
            return ticket
        self._writer.submit(ticket, run.with_keys(), pages, float("inf"))
        return ticket

    def poll(self) -> Sequence[Completion]:
        """See ``Tier``."""
        ended, self._ended = self._ended, []
        return [*ended, *self._readers.poll(), *self._writer.poll()]

    def drop(self, run: PageRun) -> None:
        """See ``Tier``."""
        for key in run.with_keys().keys[run.first : run.last]:
            self._forget(key)

    def stats(self) -> TierStats:
        """See ``Tier``."""
        self._stats.ready = len(self._index)
        self._stats.timeouts = self._readers.num_timeouts
        return self._stats

    def fence(self, timeout_s: float) -> bool:
        """See ``Tier``: every put before has ended then, and what it wrote is synced."""
        return self._writer.wait(timeout_s)

    def close(self) -> None:
        """See ``Tier``; seals the open segment."""
        if self._is_closed:
            return
        self._is_closed = True
        self._readers.close()
        self._writer.close()
        self._seal()
        if self._readers.num_open or self._writer.num_open:
            return  # a thread is stuck in a call on one of the files
        self._close_retired()
        for segment in self._segments.values():
            self._files.close(segment.descriptor)
        if self._lock_file is not None:
            os.close(self._lock_file)

    # ------------------------------------------------------------ what there is

    def num_leading(self, keys: Sequence[bytes]) -> int:
        """Return how many of the first keys are those of pages that are there."""
        index = self._index
        return next((i for i, key in enumerate(keys) if key not in index), len(keys))

    @property
    def num_bytes(self) -> int:
        """Bytes of all records on disk, dead ones included."""
        return sum(segment.num_bytes for segment in self._segments.values())

    def identities(self) -> Iterator[Identity]:
        """Yield whose pages there are, parents before children; reads their headers."""
        for key, (segment, record) in list(self._index.items()):
            whose = segments.header_of(self._files, segment, record)
            if whose is not None and whose.key == key:
                yield whose

    # ------------------------------------------------------------ opening

    def _take_lock(self) -> None:
        self._lock_file = os.open(
            self.folder / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_file)
            raise ConfigError(
                f"disk={self.folder} is in use by another runtime: give each one a directory"
            ) from error

    def _load(self) -> None:
        paths = sorted(self.folder.glob(f"*{segments.SUFFIX}"))
        for path in paths:
            if not path.stem.isdigit():
                continue
            self._last_number = max(self._last_number, int(path.stem))
            try:
                segment = segments.load(self._files, path, self.layout, read_only=self._read_only)
            except OSError as error:
                log.warning("%s cannot be read: %s", path, error)
                continue
            if segment is None:
                self._drop_foreign(path)
                continue
            self._segments[segment.number] = segment
            for record, key in enumerate(segment.keys):
                if key:
                    self._enter(key, segment, record)
        if self._segments and not self._read_only:
            self._reopen_last()

    def _drop_foreign(self, path: Path) -> None:
        """Remove a segment of another layout: nothing here can read it, and it would fill the
        quota unseen. What is no segment at all is left alone."""
        with path.open("rb") as file:
            is_ours = file.read(len(segments.MAGIC)) == segments.MAGIC
        if is_ours and not self._read_only:
            log.warning("%s is of another layout: removed", path)
            self._files.unlink(path)

    def _reopen_last(self) -> None:
        last = self._segments[max(self._segments)]
        for segment in self._segments.values():
            if segment is not last and not segment.is_sealed:
                self._try_to_seal(segment)
        if last.num_records < self._segment_records:
            segments.unseal(self._files, last)
            self._open = last
        elif not last.is_sealed:
            self._try_to_seal(last)

    # ------------------------------------------------------------ reading

    def _read(self, jobs: list[Job]) -> None:
        (job,) = jobs
        run, layout = job.run, self.layout
        header = bytearray(layout.header_bytes)
        done = 0
        outcome: Outcome = "ok"
        for index in range(run.num_pages):
            page = run.first + index
            if self._clock() > job.deadline:
                outcome = "timeout" if outcome == "ok" else outcome
                self._readers.num_timeouts += 1
                break
            whose = identity(run, page)
            found = self._read_page(whose, header, memoryview(self._data[job.pages[index]]))
            if outcome == "ok":
                outcome = found
                done += found == "ok"
            if found not in ("ok", "corrupt"):
                break
            # What is behind a damaged record is of no use here, but what else is damaged must be
            # known, or the next restart would stop at the next record, and so on.
        num_bytes = done * layout.page_bytes
        self._stats.read += done
        self._stats.bytes_read += num_bytes
        self._readers.end(job, outcome, done, num_bytes)

    def _read_page(self, whose: Identity, header: bytearray, payload: memoryview) -> Outcome:
        place = self._index.get(whose.key)
        if place is None:
            return "missing"
        segment, record = place
        view = memoryview(header)
        try:
            got = self._files.read(segment.descriptor, [view, payload], segment.offset(record))
        except OSError as error:
            log.warning("%s: record %d: %s", segment.path, record, error)
            self._stats.failed += 1
            self._forget(whose.key, place)
            return "failed"
        wanted = len(header) + len(payload)
        flaw = "short" if got < wanted else verify(self.layout, whose, view, payload)
        if not flaw:
            segment.used[record] = time.time()
            return "ok"
        log.warning("%s: record %d is wrong (%s) and forgotten", segment.path, record, flaw)
        self._stats.corrupt += 1
        self._forget(whose.key, place)
        return "corrupt"

    # ------------------------------------------------------------ writing

    def _write(self, jobs: list[Job]) -> None:
        """Commit puts together; then each has ended."""
        self._close_retired()
        written: list[tuple[Identity, Segment, int]] = []
        outcome: Outcome = "ok"
        new = {}
        for job in jobs:
            for index in range(job.run.num_pages):
                whose = identity(job.run, job.run.first + index)
                if whose.key not in self._index:
                    new[whose.key] = whose, memoryview(self._data[job.pages[index]])
        try:
            for at in range(0, len(new), segments.MAX_BUFFERS // 4):
                some = list(new.values())[at : at + segments.MAX_BUFFERS // 4]
                written += self._append(some)
            for segment in {segment.number: segment for _, segment, _ in written}.values():
                if not segment.is_sealed:
                    self._files.sync(segment.descriptor)
        except OSError as error:
            outcome = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed"
            log.warning("%s: writing failed: %s", self.folder, error)
            self._refuse_until = self._clock() + FULL_WAIT_S
            self._stats.failed += len(new)
            written = []
            self._abandon_open()
        for whose, segment, record in written:
            self._enter(whose.key, segment, record)
        self._stats.written += len(written)
        self._stats.bytes_written += len(written) * self.layout.page_bytes
        for job in jobs:
            done = self._num_leading(job.run)
            ended: Outcome = "ok" if done == job.run.num_pages else outcome
            self._writer.end(job, ended, done, done * self.layout.page_bytes)

    def _append(
        self, records: list[tuple[Identity, memoryview]]
    ) -> list[tuple[Identity, Segment, int]]:
        """Write records to the open segment, and to new ones as it fills; unsynced."""
        layout, placed = self.layout, []
        padding = bytes(layout.record_bytes - layout.header_bytes - layout.page_bytes)
        while records:
            segment = self._writable()
            room = self._segment_records - segment.num_records
            now, records = records[:room], records[room:]
            buffers: list[bytes | memoryview] = []
            for whose, payload in now:
                buffers += [pack_header(layout, whose, payload), payload]
                if padding:
                    buffers.append(padding)
            segments.write_all(self._files, segment.descriptor, buffers, segment.num_bytes)
            for whose, _ in now:
                placed.append((whose, segment, segment.num_records))
                segment.keys.append(whose.key)
                segment.parents.append(whose.parent)
                segment.used.append(time.time())
        return placed

    def _writable(self) -> Segment:
        """Return a segment with room for a record."""
        if self._open is not None and self._open.num_records >= self._segment_records:
            self._seal()
        if self._open is None:
            kept = self._make_room()
            self._last_number += 1
            self._open = segments.create(self._files, self.folder, self._last_number, self.layout)
            self._segments[self._last_number] = self._open
            if kept:
                placed = self._append(kept)
                self._files.sync(self._open.descriptor)
                for whose, segment, record in placed:
                    self._enter(whose.key, segment, record)
        return self._open

    def _seal(self) -> None:
        if self._open is not None:
            segment, self._open = self._open, None
            self._try_to_seal(segment)

    def _try_to_seal(self, segment: Segment) -> None:
        try:
            segments.seal(self._files, segment)
        except OSError as error:  # its records are read again at the next start
            log.warning("%s has no index: %s", segment.path, error)

    def _abandon_open(self) -> None:
        """After a failed write: what the open segment's end holds is not known."""
        if self._open is None:
            return
        segment, self._open = self._open, None
        live = [
            record for record, key in enumerate(segment.keys) if self._is_at(key, segment, record)
        ]
        count = live[-1] + 1 if live else 0
        del segment.keys[count:], segment.parents[count:], segment.used[count:]
        try:
            self._files.truncate(segment.descriptor, segment.num_bytes)
        except OSError as error:
            log.warning("%s cannot be cut: %s", segment.path, error)
        if count:
            self._try_to_seal(segment)
        else:
            self._remove(segment)

    # ------------------------------------------------------------ giving up

    def _make_room(self) -> list[tuple[Identity, memoryview]]:
        """Give segments up until a new one fits into the quota; return what is to be kept."""
        size = segments.HEAD_BYTES + self._segment_records * self.layout.record_bytes
        kept: list[tuple[Identity, memoryview]] = []
        while self._segments and self.num_bytes + size > self._quota:
            kept += self._give_up_one(0 if kept else self._segment_records // 2)
        return kept

    def _give_up_one(self, num_kept: int) -> list[tuple[Identity, memoryview]]:
        """Remove the segment with the largest share of records that are dead or, as those used
        least recently, due to go; return copies of up to ``num_kept`` of the others."""
        live = list(self._index.values())
        by_use = sorted((segment.used[record], segment.number) for segment, record in live)
        due = by_use[: self._segment_records]
        last_due = due[-1][0] if due else 0.0
        going = {number: s.num_records - s.num_live for number, s in self._segments.items()}
        for _, number in due:
            going[number] += 1
        victim = max(going, key=lambda n: (going[n] / max(1, self._segments[n].num_records), -n))
        segment = self._segments[victim]
        records = [
            record for record, key in enumerate(segment.keys) if self._is_at(key, segment, record)
        ]
        others = [record for record in records if segment.used[record] > last_due]
        others.sort(key=lambda record: segment.used[record], reverse=True)
        kept = self._copies(segment, sorted(others[:num_kept]))
        for record in records:
            self._forget(segment.keys[record])
        self._remove(segment)
        self._stats.evicted += len(records) - len(kept)
        return kept

    def _copies(self, segment: Segment, records: list[int]) -> list[tuple[Identity, memoryview]]:
        """Return copies of those records that are right, in memory."""
        copies = []
        for record in records:
            whose = segments.header_of(self._files, segment, record)
            header = memoryview(bytearray(self.layout.header_bytes))
            payload = memoryview(bytearray(self.layout.page_bytes))
            self._files.read(segment.descriptor, [header, payload], segment.offset(record))
            if whose is not None and not verify(self.layout, whose, header, payload):
                copies.append((whose, payload))
        return copies

    def _remove(self, segment: Segment) -> None:
        del self._segments[segment.number]
        self._files.unlink(segment.path)
        self._retired.append(segment.descriptor)

    def _close_retired(self) -> None:
        """Close the files of removed segments once no read can be in the middle of one."""
        if self._retired and not self._readers.num_open:
            retired, self._retired = self._retired, []
            for descriptor in retired:
                self._files.close(descriptor)

    # ------------------------------------------------------------ index

    def _enter(self, key: bytes, segment: Segment, record: int) -> None:
        with self._lock:
            before = self._index.get(key)
            if before is not None:
                before[0].num_live -= 1
            self._index[key] = segment, record
            segment.num_live += 1

    def _forget(self, key: bytes, place: Place | None = None) -> None:
        """Take a key out, if it is (still) at ``place``."""
        with self._lock:
            found = self._index.get(key)
            if found is None or (place is not None and found != place):
                return
            del self._index[key]
            found[0].num_live -= 1

    def _is_at(self, key: bytes, segment: Segment, record: int) -> bool:
        return self._index.get(key) == (segment, record)

    def _num_leading(self, run: PageRun) -> int:
        done = 0
        for key in run.keys[run.first : run.last]:
            if key not in self._index:
                break
            done += 1
        return done
