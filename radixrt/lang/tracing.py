"""What programs do, told to who wants to see it: the one seam of traces.

A backend that was given a ``Tracer`` tells it of every program that it runs, every fork, and every
generation and selection once it has ended. Without one nothing is noted and nothing is spent.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Literal, Protocol

from radixrt.lang.call import Call
from radixrt.lang.meta import usage_info
from radixrt.lang.nodes import Choice, Gen
from radixrt.protocol import Chosen, Finished

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProgramBegan:
    """A program begins on ``track``. Times are seconds since 1970; tracks are the backend's own."""

    track: int
    name: str
    at: float


@dataclass(frozen=True, slots=True)
class Forked:
    """``track`` goes on from what ``parent`` is now."""

    track: int
    parent: int
    at: float


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A generation or a selection was sent at ``began`` and is over.

    ``first`` is when its first text came; None for a selection, and where it was not seen.
    ``usage`` has the token counts of ``get_meta_info``; it is empty when the call failed with
    ``error``.
    """

    track: int
    op: Literal["gen", "select"]
    name: str
    file: str
    line: int
    began: float
    first: float | None
    ended: float
    usage: dict[str, int] = field(default_factory=dict)
    finish: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class ProgramEnded:
    """The body of the program on ``track`` has ended and so have its calls; ``error`` is what it
    raised."""

    track: int
    at: float
    error: str = ""


Record = ProgramBegan | Forked | CallEnded | ProgramEnded


class Tracer(Protocol):
    """Takes records. It is called on any thread, the client's reader among them, and has to return
    at once; what it raises is logged and goes no further."""

    model: str
    """Set by the backend: the model that is served."""

    def note(self, record: Record) -> None:
        """Take what has happened."""


class Tracing:
    """A backend's tracer and the numbers of its tracks."""

    def __init__(self, tracer: Tracer, model: str) -> None:
        tracer.model = model
        self._tracer = tracer
        self._tracks = itertools.count(1)

    def began(self, name: str) -> int:
        """A program begins; return its track."""
        track = next(self._tracks)
        self.note(ProgramBegan(track, name, time.time()))
        return track

    def forked(self, parent: int) -> int:
        """A fork of a track; return its own."""
        track = next(self._tracks)
        self.note(Forked(track, parent, time.time()))
        return track

    def sent(self, track: int, node: Gen | Choice, call: Call) -> None:
        """A call was sent; it is noted when it has ended."""
        _Observed(self, track, node, call).begin()

    def ended(self, track: int, error: BaseException | None) -> None:
        """A program is over."""
        self.note(ProgramEnded(track, time.time(), "" if error is None else _told(error)))

    def note(self, record: Record) -> None:
        """Hand a record on."""
        try:
            self._tracer.note(record)
        except Exception:  # a tracer's fault must not become the program's
            log.exception("the tracer failed")


class _Observed:
    """Waits for the end of one call, and notes when its first text came."""

    def __init__(self, tracing: Tracing, track: int, node: Gen | Choice, call: Call) -> None:
        self._tracing = tracing
        self._track = track
        self._node = node
        self._call = call
        self._began = time.time()
        self._first: float | None = None
        self._lock = threading.Lock()
        self._is_over = False

    def begin(self) -> None:
        """Look now and at every change."""
        self._call.signal.listen(self._look)
        self._look()

    def _look(self) -> None:
        if self._first is None and self._call.chunks:
            self._first = time.time()
        if not self._call.is_done:
            return
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        self._call.signal.unlisten(self._look)
        self._tracing.note(self._record())

    def _record(self) -> CallEnded:
        node, call = self._node, self._call
        error = call.error
        usage: dict[str, int] = {}
        finish = ""
        if error is None:
            result = call.result
            assert isinstance(result, Finished | Chosen)
            usage = usage_info(result.usage)
            if isinstance(result, Finished) and result.outputs:
                finish = result.outputs[0].finish_reason.type
        return CallEnded(
            self._track,
            "gen" if isinstance(node, Gen) else "select",
            node.name or "",
            node.where.file,
            node.where.line,
            self._began,
            self._first,
            time.time(),
            usage,
            finish,
            "" if error is None else _told(error),
        )


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
