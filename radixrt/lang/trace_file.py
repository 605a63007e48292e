"""Records of a trace as lines of JSON: written while programs run, read when they have ended."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson

from radixrt.errors import InvalidArgument
from radixrt.lang.tracing import CallEnded, Forked, ProgramBegan, ProgramEnded, Record

TRACE_VARIABLE = "RADIXRT_TRACE"
"""Names the directory that backends write traces to."""

SUFFIX = ".trace.jsonl"

_KINDS: dict[str, type[Record]] = {
    "began": ProgramBegan,
    "forked": Forked,
    "call": CallEnded,
    "ended": ProgramEnded,
}
_KIND_OF: dict[type[Record], str] = {cls: kind for kind, cls in _KINDS.items()}


class TraceFile:
    """A ``Tracer`` that writes a file of its own to a directory, a line a record at once: what was
    traced is there whatever becomes of the process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(SUFFIX, f"{os.getpid()}-", folder)
        self.path = Path(path)
        self.model = ""
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._lock = threading.Lock()
        self._has_begun = False

    def note(self, record: Record) -> None:
        """See ``Tracer``."""
        line = orjson.dumps([_KIND_OF[type(record)], record]) + b"\n"
        with self._lock:
            if self._file.closed:
                return
            if not self._has_begun:
                head = {"model": self.model, "process": os.getpid()}
                line = orjson.dumps(["backend", head]) + b"\n" + line
                self._has_begun = True
            self._file.write(line)

    def close(self) -> None:
        """Close the file; what comes later is dropped. Idempotent."""
        with self._lock:
            self._file.close()


@dataclass(frozen=True, slots=True)
class Trace:
    """What one backend has written."""

    model: str
    process: int
    records: tuple[Record, ...]


def read_traces(folder: Path) -> list[Trace]:
    """Return the traces in a directory, in the order of their beginnings. A last line that was cut
    off is left out; raises ``InvalidArgument`` for a file that is no trace."""
    traces = [_read(path) for path in folder.glob(f"*{SUFFIX}") if path.stat().st_size]
    return sorted(traces, key=lambda trace: _time_of(trace.records[0]) if trace.records else 0.0)


def _read(path: Path) -> Trace:
    lines = _lines(path)
    nothing: tuple[str, Any] = ("", {})
    first, head = next(lines, nothing)
    if first != "backend":
        raise InvalidArgument("trace", path, "it is not a file that RADIXRT_TRACE made")
    records: list[Record] = []
    for kind, fields in lines:
        cls: Any = _KINDS[kind]
        records.append(msgspec.convert(fields, cls))
    return Trace(str(head["model"]), int(head["process"]), tuple(records))


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            kind, fields = orjson.loads(line)
            yield kind, fields


def _time_of(record: Record) -> float:
    return record.began if isinstance(record, CallEnded) else record.at
