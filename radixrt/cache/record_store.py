"""Records in the segments of a directory, found by key: what is written, read and given up."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from radixrt.cache import segments
from radixrt.cache.files import Files
from radixrt.cache.records import Identity, Layout, pack_header, verify
from radixrt.cache.segments import Segment
from radixrt.cache.tier import Outcome, TierStats
from radixrt.errors import ConfigError

log = logging.getLogger(__name__)

SEGMENT_BYTES = 256 << 20
SEGMENT_RECORDS = 16_384
"""A segment is full with so many bytes or records; after a crash the last one's are looked at."""

Place = tuple[Segment, int]
Record = tuple[Identity, memoryview]
"""Whose page it is, and its bytes."""


class RecordStore:
    """A dictionary of records on disk, over restarts.

    A record says whose it is and is verified whenever it is read, so whatever happens to the files,
    a wrong one is never returned: it is forgotten, counted in ``stats`` and can be written again.

    Beyond ``quota`` bytes the segment with the most records that are dead or due to go is given up,
    after half of it at most, what was used last, was copied on.

    One thread appends; others may read and forget meanwhile. One process has a directory at a time;
    ``ConfigError`` for a second. ``read_only`` takes no lock and writes nothing.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        files: Files,
        stats: TierStats,
        *,
        quota: int,
        segment_bytes: int = SEGMENT_BYTES,
        read_only: bool = False,
    ) -> None:
        self.folder = folder
        self.layout = layout
        self.stats = stats
        self._files = files
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
        self._lock_file: int | None = None
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
        self._load()

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

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

    # ------------------------------------------------------------ reading

    def read(self, whose: Identity, header: bytearray, payload: memoryview) -> Outcome:
        """Read a record; ``payload`` is undefined unless the outcome is "ok"."""
        place = self._index.get(whose.key)
        if place is None:
            return "missing"
        segment, record = place
        view = memoryview(header)
        try:
            got = self._files.read(segment.descriptor, [view, payload], segment.offset(record))
        except OSError as error:
            log.warning("%s: record %d: %s", segment.path, record, error)
            self.stats.failed += 1
            self.forget(whose.key, place)
            return "failed"
        wanted = len(header) + len(payload)
        flaw = "short" if got < wanted else verify(self.layout, whose, view, payload)
        if not flaw:
            segment.used[record] = time.time()
            return "ok"
        log.warning("%s: record %d is wrong (%s) and forgotten", segment.path, record, flaw)
        self.stats.corrupt += 1
        self.forget(whose.key, place)
        return "corrupt"

    # ------------------------------------------------------------ writing

    def append(self, records: Sequence[Record]) -> None:
        """Write records; when it returns they are synced and found.

        ``OSError``: none of them is, and what the open segment's end holds is given up.
        """
        written: list[tuple[Identity, Segment, int]] = []
        step = segments.MAX_BUFFERS // 4
        try:
            for at in range(0, len(records), step):
                written += self._append(list(records[at : at + step]))
            for segment in {segment.number: segment for _, segment, _ in written}.values():
                if not segment.is_sealed:
                    self._files.sync(segment.descriptor)
        except OSError:
            self._abandon_open()
            raise
        for whose, segment, record in written:
            self._enter(whose.key, segment, record)

    def _append(self, records: list[Record]) -> list[tuple[Identity, Segment, int]]:
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
            self.seal()
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

    def seal(self) -> None:
        """Write the open segment's index; the next record begins a new one."""
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

    def _make_room(self) -> list[Record]:
        """Give segments up until a new one fits into the quota; return what is to be kept."""
        size = segments.HEAD_BYTES + self._segment_records * self.layout.record_bytes
        kept: list[Record] = []
        while self._segments and self.num_bytes + size > self._quota:
            kept += self._give_up_one(0 if kept else self._segment_records // 2)
        return kept

    def _give_up_one(self, num_kept: int) -> list[Record]:
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
            self.forget(segment.keys[record])
        self._remove(segment)
        self.stats.evicted += len(records) - len(kept)
        return kept

    def _copies(self, segment: Segment, records: list[int]) -> list[Record]:
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

    def close_retired(self) -> None:
        """Close the files of removed segments; nobody may be in the middle of reading one."""
        retired, self._retired = self._retired, []
        for descriptor in retired:
            self._files.close(descriptor)

    def close(self) -> None:
        """Close all files; after ``seal``."""
        self.close_retired()
        for segment in self._segments.values():
            self._files.close(segment.descriptor)
        if self._lock_file is not None:
            os.close(self._lock_file)

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

    # ------------------------------------------------------------ index

    def _enter(self, key: bytes, segment: Segment, record: int) -> None:
        with self._lock:
            before = self._index.get(key)
            if before is not None:
                before[0].num_live -= 1
            self._index[key] = segment, record
            segment.num_live += 1

    def forget(self, key: bytes, place: Place | None = None) -> None:
        """Take a key out, if it is (still) at ``place``."""
        with self._lock:
            found = self._index.get(key)
            if found is None or (place is not None and found != place):
                return
            del self._index[key]
            found[0].num_live -= 1

    def _is_at(self, key: bytes, segment: Segment, record: int) -> bool:
        return self._index.get(key) == (segment, record)
