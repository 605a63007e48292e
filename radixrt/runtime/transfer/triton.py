"""Moving pages between a GPU's pool and pinned host memory, on streams of their own.

Two ways, timed at start-up: *direct*, a kernel that reads or writes the pinned memory over the bus
itself, a layer a launch; and *staged*, the copy engine moves whole host pages into a staging buffer
on the device and a kernel spreads them over the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from radixrt.runtime.device import upload

Int32 = NDArray[np.int32]
Way = Literal["direct", "staged"]

WAYS: tuple[Way, ...] = ("direct", "staged")

DIRECT_MAY_BE_SLOWER = 0.85
"""A direct load hides behind the layers before: staged ones must take less than so much of it."""

STAGING_BYTES = 64 << 20
"""Size of the staging buffer: its scatter is three percent of its copy over the bus."""

MIN_LAUNCH_BYTES = 1 << 20
"""Layers that are smaller together share a launch: it costs as much as so many bytes take."""

BLOCK = 8192
"""Elements that one program moves at a time."""


@triton.jit
def _move_pages(
    keys,
    values,
    host,
    pages,
    host_pages,
    num_pages,
    first_layer,
    num_layers,
    layer_stride,
    host_stride,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    TO_HOST: tl.constexpr,
):
    # A chunk is the keys or the values of one page in one layer, a part a block of it. Neighbours
    # in the order of the parts are neighbours in the host's memory.
    columns = tl.arange(0, BLOCK)
    total = num_pages * num_layers * 2 * PARTS
    for part in range(tl.program_id(0), total, tl.num_programs(0)):
        at = (part % PARTS) * BLOCK + columns
        # A mask that says nothing would only keep the compiler from moving 16 bytes at a time.
        inside = (at < CHUNK) if CHUNK % BLOCK else None
        half = (part // PARTS) % 2
        layer = first_layer + (part // (PARTS * 2)) % num_layers
        index = part // (PARTS * 2 * num_layers)
        page = tl.load(pages + index).to(tl.int64)
        host_page = tl.load(host_pages + index).to(tl.int64)
        there = host + host_page * host_stride + (layer * 2 + half) * CHUNK + at
        here = layer.to(tl.int64) * layer_stride + page * CHUNK + at
        if TO_HOST:
            if half == 0:
                tl.store(there, tl.load(keys + here, mask=inside), mask=inside)
            else:
                tl.store(there, tl.load(values + here, mask=inside), mask=inside)
        else:
            if half == 0:
                tl.store(keys + here, tl.load(there, mask=inside), mask=inside)
            else:
                tl.store(values + here, tl.load(there, mask=inside), mask=inside)


class StreamMove:
    """A move on a stream; see ``Move``."""

    has_failed = False

    def __init__(self, num_pages: int, keep: Sequence[torch.Tensor]) -> None:
        self.num_pages = num_pages
        self._keep = keep
        self._begun: Any = None
        self._ends: list[int] = []
        self._arrived: list[Any] = []

    def begun(self, event: Any) -> None:
        """Note the event before the first copy."""
        self._begun = event

    def arrived(self, end: int, event: Any) -> None:
        """Note the event after which the layers below ``end`` are there."""
        self._ends.append(end)
        self._arrived.append(event)

    @property
    def is_done(self) -> bool:
        """See ``Move``."""
        return bool(self._arrived[-1].query())

    @property
    def seconds(self) -> float:
        """See ``Move``."""
        return float(self._begun.elapsed_time(self._arrived[-1])) / 1000

    def wait_layer(self, layer: int) -> None:
        """See ``Move``."""
        for index, end in enumerate(self._ends):
            if layer < end:
                self._arrived[index].wait()
                return

    def wait_all(self) -> None:
        """See ``Move``."""
        self._arrived[-1].wait()

    def finish(self) -> None:
        """See ``Move``."""
        self._arrived[-1].synchronize()


class TritonMover:
    """The mover "triton"; see ``Mover``. ``host`` is pinned.

    ``num_programs`` bounds the multiprocessors that a direct move keeps busy.
    """

    name = "triton"

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        host: torch.Tensor,
        *,
        load_by: Way = "direct",
        store_by: Way = "direct",
        num_programs: int = 32,
    ) -> None:
        self.host = host
        self.load_by: Way = load_by
        self.store_by: Way = store_by
        self.num_programs = num_programs
        self.num_layers = keys.shape[0]
        self._keys = keys
        self._values = values
        self._device = keys.device
        self._chunk = keys[0, 0].numel()
        self._page_bytes = host[0].nbytes
        self._num_staged = max(1, STAGING_BYTES // self._page_bytes)
        self._staging: dict[bool, torch.Tensor] = {}
        self._streams: dict[bool, Any] = {}
        if self._device.type == "cuda":
            self._streams = {to_host: torch.cuda.Stream(self._device) for to_host in (False, True)}

    def warm_up(self, num_pages: int) -> None:
        """See ``Mover``."""
        pages = np.arange(1, num_pages + 1, dtype=np.int32)
        for to_host in (False, True):
            seconds: dict[Way, float] = {}
            for way in WAYS:
                for _ in range(3):  # the first compiles
                    move = self._move(pages, pages, to_host=to_host, by=way)
                    move.finish()
                    seconds[way] = move.seconds
            best: Way = min(WAYS, key=lambda way: seconds[way])
            if to_host:
                self.store_by = best
            elif seconds["staged"] < seconds["direct"] * DIRECT_MAY_BE_SLOWER:
                self.load_by = "staged"

    def load(self, pages: Int32, host_pages: Int32) -> StreamMove:
        """See ``Mover``."""
        return self._move(pages, host_pages, to_host=False, by=self.load_by)

    def store(self, pages: Int32, host_pages: Int32) -> StreamMove:
        """See ``Mover``."""
        return self._move(pages, host_pages, to_host=True, by=self.store_by)

    def close(self) -> None:
        """See ``Mover``."""
        for stream in self._streams.values():
            stream.synchronize()

    def _move(self, pages: Int32, host_pages: Int32, *, to_host: bool, by: Way) -> StreamMove:
        order = np.arange(self._num_staged, dtype=np.int32)
        ids = upload([pages, host_pages, order], self._device)
        move = StreamMove(len(pages), ids)
        stream = self._streams[to_host]
        stream.wait_event(_recorded())
        with torch.cuda.stream(stream):
            move.begun(_recorded(timed=True))
            if by == "direct":
                self._direct(move, ids, to_host)
            else:
                self._staged(move, ids, host_pages, to_host)
        return move

    def _direct(self, move: StreamMove, ids: list[torch.Tensor], to_host: bool) -> None:
        pages, host_pages, _ = ids
        layer_bytes = move.num_pages * self._page_bytes // self.num_layers
        group = self.num_layers if to_host else max(1, MIN_LAUNCH_BYTES // max(1, layer_bytes))
        for first in range(0, self.num_layers, group):
            end = min(self.num_layers, first + group)
            self.launch(self.host, pages, host_pages, first, end, to_host, self.num_programs)
            move.arrived(end, _recorded(timed=end == self.num_layers))

    def _staged(
        self, move: StreamMove, ids: list[torch.Tensor], host_pages: Int32, to_host: bool
    ) -> None:
        pages, _, order = ids
        if to_host not in self._staging:
            shape = (self._num_staged, *self.host.shape[1:])
            self._staging[to_host] = torch.empty(shape, dtype=self.host.dtype, device=self._device)
        staging = self._staging[to_host]
        for first in range(0, move.num_pages, self._num_staged):
            part = host_pages[first : first + self._num_staged]
            here, there = pages[first : first + len(part)], order[: len(part)]
            if to_host:
                self.launch(staging, here, there, 0, self.num_layers, to_host, 4096)
            for begin, end in runs(part):
                on_host = self.host[int(part[begin]) : int(part[begin]) + end - begin]
                if to_host:
                    on_host.copy_(staging[begin:end], non_blocking=True)
                else:
                    staging[begin:end].copy_(on_host, non_blocking=True)
            if not to_host:
                self.launch(staging, here, there, 0, self.num_layers, to_host, 4096)
        move.arrived(self.num_layers, _recorded(timed=True))

    def launch(
        self,
        host: torch.Tensor,
        pages: torch.Tensor,
        host_pages: torch.Tensor,
        first_layer: int,
        last_layer: int,
        to_host: bool,
        num_programs: int,
    ) -> None:
        """Launch the kernel on the current stream: layers [first, last) of ``pages`` (int32 [n]) to
        or from ``host_pages`` (int32 [n]) of ``host``, pinned or on the device."""
        block = min(BLOCK, triton.next_power_of_2(self._chunk))
        parts = -(-self._chunk // block)
        total = parts * 2 * (last_layer - first_layer) * len(pages)
        _move_pages[(min(num_programs, total),)](
            self._keys,
            self._values,
            host,
            pages,
            host_pages,
            len(pages),
            first_layer,
            last_layer - first_layer,
            self._keys.stride(0),
            host.stride(0),
            CHUNK=self._chunk,
            PARTS=parts,
            BLOCK=block,
            TO_HOST=to_host,
            num_warps=8,
        )


def runs(pages: Int32) -> list[tuple[int, int]]:
    """Return the ranges of indices whose page numbers follow each other."""
    breaks = np.flatnonzero(np.diff(pages) != 1) + 1
    edges = [0, *breaks.tolist(), len(pages)]
    return list(pairwise(edges))


def _recorded(*, timed: bool = False) -> Any:
    event = torch.cuda.Event(enable_timing=timed)
    event.record()
    return event
