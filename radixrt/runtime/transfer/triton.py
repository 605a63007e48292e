"""Moving pages between a GPU's pool and pinned host memory, on streams of their own.

Two ways: *direct*, a kernel that reads or writes the pinned memory over the bus itself; and, for
loads, *staged*: the copy engine, which comes nearer to what the bus can do, moves the pages' parts
of some layers into a staging buffer on the device, and a kernel spreads them over the pool
meanwhile. Which of them loads large moves is timed at start-up.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from radixrt.runtime.device import upload
from radixrt.runtime.transfer.copy_engine import CopyEngine
from radixrt.runtime.transfer.triton_staging import Staging

Int32 = NDArray[np.int32]
Way = Literal["direct", "staged"]

MIN_STAGED_BYTES = 64 << 20
"""Smaller loads are over before a pipeline has started."""

MIN_LAUNCH_BYTES = 16 << 20
"""Layers that are smaller together share a launch: it costs the host as much as a third of so many
bytes the bus."""

BLOCK = 8192
"""Elements that one program moves at a time."""

NUM_SPREADING = 4096
"""Programs of a kernel that stays on the device: no copy over the bus waits for it to begin."""


# Numbers that differ from call to call: a kernel of its own for 1, or for multiples of 16, would
# be compiled while a request waits for it.
@triton.jit(do_not_specialize=["num_pages", "first_layer", "num_layers", "host_layer"])
def _move_pages(
    keys,
    values,
    host,
    pages,
    host_pages,
    num_pages,
    first_layer,
    num_layers,
    host_layer,
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
        layer = (part // (PARTS * 2)) % num_layers
        index = part // (PARTS * 2 * num_layers)
        page = tl.load(pages + index).to(tl.int64)
        host_page = tl.load(host_pages + index).to(tl.int64)
        there = host + host_page * host_stride + ((host_layer + layer) * 2 + half) * CHUNK + at
        here = (first_layer + layer).to(tl.int64) * layer_stride + page * CHUNK + at
        if TO_HOST:
            if half == 0:
                tl.store(there, tl.load(keys + here, mask=inside), mask=inside)
            else:
                tl.store(there, tl.load(values + here, mask=inside), mask=inside)
        else:
            moved = tl.load(there, mask=inside)
            if half == 0:
                tl.store(keys + here, moved, mask=inside)
            else:
                tl.store(values + here, moved, mask=inside)


class StreamMove:
    """A move on a stream; see ``Move``."""

    has_failed = False

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._kept: list[torch.Tensor] = []
        self._begun: Any = None
        self._ends: list[int] = []
        self._arrived: list[Any] = []

    def keep(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Keep what the move's kernels read as long as the move; return it."""
        self._kept += tensors
        return tensors

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

    ``load_by`` is how loads of ``min_staged_bytes`` or more are moved, until ``warm_up`` decides;
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
        min_staged_bytes: int = MIN_STAGED_BYTES,
        num_programs: int = 64,
    ) -> None:
        self.host = host
        self.load_by: Way = load_by
        self.min_staged_bytes = min_staged_bytes
        self.num_programs = num_programs
        self.num_layers = keys.shape[0]
        self._keys = keys
        self._values = values
        self._device = keys.device
        self._chunk = keys[0, 0].numel()
        self._page_bytes = host[0].nbytes
        self._streams: dict[bool, Any] = {}
        self._copy_engine: CopyEngine | None = None
        self._staging: Staging | None = None
        if self._device.type == "cuda":
            self._streams = {to_host: torch.cuda.Stream(self._device) for to_host in (False, True)}
            self._copy_engine = CopyEngine.find()

    def warm_up(self, num_pages: int) -> None:
        """See ``Mover``."""
        pages = np.arange(1, num_pages + 1, dtype=np.int32)
        self._move(pages, pages, to_host=True).finish()
        ways: list[Way] = ["direct"]
        if self._copy_engine is not None and num_pages * self._page_bytes >= self.min_staged_bytes:
            ways.append("staged")
        seconds: dict[Way, float] = {}
        for way in ways:
            for _ in range(3):  # the first compiles
                self.load_by = way
                move = self.load(pages, pages)
                move.finish()
                seconds[way] = min(move.seconds, seconds.get(way, move.seconds))
        self.load_by = min(ways, key=lambda way: seconds[way])

    def load(self, pages: Int32, host_pages: Int32) -> StreamMove:
        """See ``Mover``."""
        return self._move(pages, host_pages, to_host=False)

    def store(self, pages: Int32, host_pages: Int32) -> StreamMove:
        """See ``Mover``."""
        return self._move(pages, host_pages, to_host=True)

    def close(self) -> None:
        """See ``Mover``."""
        for stream in self._streams.values():
            stream.synchronize()

    def _move(self, pages: Int32, host_pages: Int32, *, to_host: bool) -> StreamMove:
        is_large = len(pages) * self._page_bytes >= self.min_staged_bytes
        move = StreamMove(len(pages))
        stream = self._streams[to_host]
        stream.wait_event(_recorded())
        with torch.cuda.stream(stream):
            move.begun(_recorded(timed=True))
            if is_large and not to_host and self.load_by == "staged":
                self._load_staged(move, pages, host_pages)
            else:
                self._direct(move, pages, host_pages, to_host)
        return move

    def _direct(self, move: StreamMove, pages: Int32, host_pages: Int32, to_host: bool) -> None:
        here, there = move.keep(upload([pages, host_pages], self._device))
        for first, end in self._groups(move, self.num_layers if to_host else 1):
            self.launch(self.host, here, there, first, end, to_host, self.num_programs)
            move.arrived(end, _recorded(timed=end == self.num_layers))

    def _load_staged(self, move: StreamMove, pages: Int32, host_pages: Int32) -> None:
        if self._staging is None:
            assert self._copy_engine is not None, "a staged load needs the copy engine"
            self._staging = Staging(self.host, self._device, self._copy_engine)
        staging, here = self._staging, None
        for first, end in self._groups(move, staging.min_layers):
            for part, buffer in staging.fill(host_pages, first, end):
                if here is None:  # the first copy is under way by now
                    (here,) = move.keep(upload([pages], self._device))
                there = staging.order[: len(buffer)]
                self.launch(buffer, here[part], there, first, end, False, NUM_SPREADING, 0)
            move.arrived(end, _recorded(timed=end == self.num_layers))

    def _groups(self, move: StreamMove, min_layers: int) -> list[tuple[int, int]]:
        """Return the ranges of layers that arrive together."""
        layer_bytes = move.num_pages * self._page_bytes // self.num_layers
        step = max(min_layers, -(-MIN_LAUNCH_BYTES // max(1, layer_bytes)))
        starts = range(0, self.num_layers, step)
        return [(first, min(first + step, self.num_layers)) for first in starts]

    def launch(
        self,
        host: torch.Tensor,
        pages: torch.Tensor,
        host_pages: torch.Tensor,
        first_layer: int,
        last_layer: int,
        to_host: bool,
        num_programs: int,
        host_layer: int | None = None,
    ) -> None:
        """Launch the kernel on the current stream: layers [first, last) of ``pages`` (int32 [n]) to
        or from ``host_pages`` (int32 [n]) of ``host``, pinned or on the device, whose layer
        ``host_layer`` is the first one; by default they are numbered alike."""
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
            first_layer if host_layer is None else host_layer,
            self._keys.stride(0),
            host.stride(0),
            CHUNK=self._chunk,
            PARTS=parts,
            BLOCK=block,
            TO_HOST=to_host,
            num_warps=8,
        )


def _recorded(*, timed: bool = False) -> Any:
    event = torch.cuda.Event(enable_timing=timed)
    event.record()
    return event
