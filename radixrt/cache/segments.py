"""Append-only files of records: their form, and how they are found again after a crash."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.files import Files
from radixrt.cache.pagekeys import KEY_BYTES
from radixrt.cache.records import Identity, Layout, read_header

SUFFIX = ".seg"
MAGIC = b"RXSEGM01"
END_MAGIC = b"RXINDX01"
HEAD_BYTES = 64
MAX_BUFFERS = 512
"""Buffers of one write; the system takes 1024."""

# magic, page_size, page_bytes, layout's name, checksum
_HEAD = struct.Struct(f"<8sII{KEY_BYTES}sI")
# number of entries, checksum of the entries, magic
_END = struct.Struct("<QI8s")
_ENTRY = np.dtype([("key", f"V{KEY_BYTES}"), ("parent", f"V{KEY_BYTES}"), ("used", "<f8")])


@dataclass(slots=True, eq=False)
class Segment:
    """One file: a head, records of equal length, and, once it is sealed, an index at its end.

        [head 64][record 0][record 1] … [record n-1][entries][end]

    ``keys`` and ``parents`` say what record i holds (an empty key: nothing that is known), ``used``
    when it was last asked for, in seconds of the wall clock. A sealed segment whose index is whole
    is trusted without looking at its records: each is verified when it is read.
    """

    number: int
    path: Path
    descriptor: int
    layout: Layout
    keys: list[bytes] = field(default_factory=list)
    parents: list[bytes] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    num_live: int = 0
    is_sealed: bool = False

    @property
    def num_records(self) -> int:
        """Records that were written, dead ones included."""
        return len(self.keys)

    @property
    def num_bytes(self) -> int:
        """Bytes of head and records."""
        return self.offset(self.num_records)

    def offset(self, record: int) -> int:
        """Return where a record begins."""
        return HEAD_BYTES + record * self.layout.record_bytes


def segment_path(folder: Path, number: int) -> Path:
    """Return the path of a segment's file."""
    return folder / f"{number:08d}{SUFFIX}"


def create(files: Files, folder: Path, number: int, layout: Layout) -> Segment:
    """Make an empty segment."""
    path = segment_path(folder, number)
    descriptor = files.create(path)
    write_all(files, descriptor, [_head(layout)], 0)
    return Segment(number, path, descriptor, layout)


def write_all(
    files: Files, descriptor: int, buffers: Sequence[bytes | memoryview], offset: int
) -> None:
    """Write all buffers, in as many calls as it takes."""
    rest = [memoryview(buffer).cast("B") for buffer in buffers]
    while rest:
        written = files.write(descriptor, rest[:MAX_BUFFERS], offset)
        if written <= 0:
            raise OSError(f"write returned {written}")
        offset += written
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]


def seal(files: Files, segment: Segment) -> None:
    """Write the index, so that the next start need not look at the records."""
    entries = np.zeros(segment.num_records, _ENTRY)
    if segment.num_records:
        entries["key"] = np.frombuffer(
            b"".join(key.ljust(KEY_BYTES, b"\0") for key in segment.keys), f"V{KEY_BYTES}"
        )
        entries["parent"] = np.frombuffer(
            b"".join(key.ljust(KEY_BYTES, b"\0") for key in segment.parents), f"V{KEY_BYTES}"
        )
        entries["used"] = segment.used
    data = entries.tobytes()
    end = _END.pack(segment.num_records, zlib.crc32(data), END_MAGIC)
    write_all(files, segment.descriptor, [data, end], segment.num_bytes)
    files.sync(segment.descriptor)
    segment.is_sealed = True


def unseal(files: Files, segment: Segment) -> None:
    """Cut the index off, to go on appending."""
    files.truncate(segment.descriptor, segment.num_bytes)
    segment.is_sealed = False


def load(files: Files, path: Path, layout: Layout, *, read_only: bool = False) -> Segment | None:
    """Open a segment and find out what it holds: from its index, else from its records' headers.

    None for a file that is no segment, or one of another layout. A last record that was not written
    to its end is left out.
    """
    descriptor = files.open_to_read(path) if read_only else files.open(path)
    try:
        segment = Segment(int(path.stem), path, descriptor, layout)
        size = files.size(descriptor)
        if _read(files, descriptor, HEAD_BYTES, 0) != _head(layout):
            files.close(descriptor)
            return None
        if not _load_index(files, segment, size):
            _scan(files, segment, size)
    except BaseException:
        files.close(descriptor)
        raise
    return segment


def header_of(files: Files, segment: Segment, record: int) -> Identity | None:
    """Return whose page a record is; None when its header is not whole."""
    header = _read(files, segment.descriptor, segment.layout.header_bytes, segment.offset(record))
    return read_header(segment.layout, header)[0]


def _load_index(files: Files, segment: Segment, size: int) -> bool:
    end = _read(files, segment.descriptor, _END.size, max(0, size - _END.size))
    if len(end) < _END.size:
        return False
    count, checksum, magic = _END.unpack(end)
    if magic != END_MAGIC or count > size // segment.layout.record_bytes:
        return False
    if segment.offset(count) + count * _ENTRY.itemsize + _END.size != size:
        return False
    data = _read(files, segment.descriptor, count * _ENTRY.itemsize, segment.offset(count))
    if len(data) != count * _ENTRY.itemsize or zlib.crc32(data) != checksum:
        return False
    entries = np.frombuffer(data, _ENTRY)
    segment.keys = _split(entries["key"])
    segment.parents = _split(entries["parent"])
    segment.used = entries["used"].tolist()
    segment.is_sealed = True
    return True


def _scan(files: Files, segment: Segment, size: int) -> None:
    """Read the header of every record that fits into the file. All are of one length, so one that
    is damaged hides none behind it."""
    layout = segment.layout
    for record in range(max(0, size - HEAD_BYTES) // layout.record_bytes):
        whose = header_of(files, segment, record)
        segment.keys.append(whose.key if whose is not None else b"")
        segment.parents.append(whose.parent if whose is not None else b"")
        segment.used.append(0.0)


def _split(keys: NDArray[np.void]) -> list[bytes]:
    data = np.ascontiguousarray(keys).tobytes()
    empty = bytes(KEY_BYTES)
    parts = [data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES)]
    return [b"" if part == empty else part for part in parts]


def _head(layout: Layout) -> bytes:
    fields = MAGIC, layout.page_size, layout.page_bytes, layout.name
    checksum = zlib.crc32(_HEAD.pack(*fields, 0))
    return _HEAD.pack(*fields, checksum).ljust(HEAD_BYTES, b"\0")


def _read(files: Files, descriptor: int, size: int, offset: int) -> bytes:
    buffer = bytearray(size)
    got = files.read(descriptor, [memoryview(buffer)], offset) if size else 0
    return bytes(buffer[:got])
