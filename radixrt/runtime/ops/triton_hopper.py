"""Products with few rows on Hopper, in Gluon: every processor reads an equal share of the weights.

The weights are cut into tiles, a tile into blocks of the inner dimension, and all blocks of a
product, in order, into one run a program. One warp of a program does nothing but ask for blocks,
as bulk copies into a ring of shared memory, and never pauses between tiles; the others multiply,
the weights' rows as the long side of the matrix unit and the few rows of x as its short side. A
tile that a program began is finished by it: those who computed the rest of it leave their sums in
memory, and they do so first thing, so that it rarely waits. Sums are added in their order, so
that results do not vary from run to run ("stream-K", Osama et al. 2023).

The ring is filled with weights before the program waits for what it depends on: with programmatic
dependent launch it starts while the kernel before it still runs, and the memory is never idle in
between.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from radixrt.runtime.device import num_processors
from radixrt.runtime.ops.few_rows import GATES, FewRows

RING_BYTES = 190 << 10
"""Shared memory of a program for blocks that are on their way; half of it is 2 % slower."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """How a product is cut: rows of weights a tile (of each half, with a gate), inner elements a
    block, blocks in the ring, programs, pieces a tile if all tiles are cut alike, and warps that
    multiply."""

    columns: int
    block_k: int
    stages: int
    programs: int
    split: int
    num_warps: int


@gluon.jit
def _ask_weights(weight, tiles, seconds, ready, stage, unit, width, STEPS, GATE: gl.constexpr):
    COLUMNS: gl.constexpr = weight.block_type.shape[0]
    BLOCK_K: gl.constexpr = weight.block_type.shape[1]
    column = unit // STEPS * COLUMNS
    k = unit % STEPS * BLOCK_K
    tma.async_copy_global_to_shared(weight, [column, k], ready, tiles.index(stage))
    if GATE > 0:
        tma.async_copy_global_to_shared(weight, [column + width, k], ready, seconds.index(stage))


@gluon.jit
def _ask(
    x,
    weight,
    rows,
    tiles,
    seconds,
    ready,
    free,
    first,
    last,
    width,
    STEPS,
    GATE: gl.constexpr,
    STAGES: gl.constexpr,
):
    ROWS: gl.constexpr = x.block_type.shape[0]
    COLUMNS: gl.constexpr = weight.block_type.shape[0]
    BLOCK_K: gl.constexpr = x.block_type.shape[1]
    BYTES: gl.constexpr = (ROWS + COLUMNS * (2 if GATE > 0 else 1)) * BLOCK_K * 2
    ahead = gl.minimum(last - first, STAGES)
    # Weights depend on no kernel: the ring is full of them before x may be read.
    for stage in range(ahead):
        mbarrier.expect(ready.index(stage), BYTES)
        _ask_weights(
            weight, tiles, seconds, ready.index(stage), stage, first + stage, width, STEPS, GATE
        )
    gdc_wait()
    for stage in range(ahead):
        k = (first + stage) % STEPS * BLOCK_K
        tma.async_copy_global_to_shared(x, [0, k], ready.index(stage), rows.index(stage))
    for count in range(ahead, last - first):
        stage = count % STAGES
        unit = first + count
        mbarrier.wait(free.index(stage), (count // STAGES & 1) ^ 1)
        mbarrier.expect(ready.index(stage), BYTES)
        _ask_weights(weight, tiles, seconds, ready.index(stage), stage, unit, width, STEPS, GATE)
        k = unit % STEPS * BLOCK_K
        tma.async_copy_global_to_shared(x, [0, k], ready.index(stage), rows.index(stage))


@gluon.jit
def _share_out(
    acc,
    bias,
    target,
    num_rows,
    partial,
    arrived,
    width,
    HAS_BIAS: gl.constexpr,
    SPLIT: gl.constexpr,
):
    # Each of the pieces of a tile adds up a share of its columns, so that none waits for one.
    COLUMNS: gl.constexpr = acc.shape[0]
    ROWS: gl.constexpr = acc.shape[1]
    SHARE: gl.constexpr = COLUMNS // SPLIT
    layout: gl.constexpr = acc.type.layout
    program = gl.program_id(0)
    tile = program // SPLIT
    down = gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, layout))
    across = gl.arange(0, ROWS, layout=gl.SliceLayout(0, layout))
    cells = across[None, :] * COLUMNS + down[:, None]
    gl.store(partial + program * (COLUMNS * ROWS) + cells, acc)
    gl.thread_barrier()
    gl.atomic_add(arrived + tile, 1, sem="acq_rel")
    while gl.atomic_add(arrived + tile, 0, sem="acquire") < SPLIT:
        pass
    LANES: gl.constexpr = SHARE // 4
    flat: gl.constexpr = gl.BlockedLayout([1, 4], [32 // LANES, LANES], [gl.num_warps(), 1], [1, 0])
    row = gl.arange(0, ROWS, layout=gl.SliceLayout(1, flat))
    column = (program % SPLIT) * SHARE + gl.arange(0, SHARE, layout=gl.SliceLayout(0, flat))
    place = partial + tile * (SPLIT * COLUMNS * ROWS) + row[:, None] * COLUMNS + column[None, :]
    total = gl.load(place, cache_modifier=".cg")
    for piece in gl.static_range(1, SPLIT):
        total += gl.load(place + piece * (COLUMNS * ROWS), cache_modifier=".cg")
    column += tile * COLUMNS
    inside = column < width
    if HAS_BIAS:
        total += gl.load(bias + column, mask=inside, other=0.0).to(gl.float32)[None, :]
    mask = (row < num_rows)[:, None] & inside[None, :]
    gl.store(
        target + row[:, None] * width + column[None, :],
        total.to(target.dtype.element_ty),
        mask=mask,
    )
    gl.thread_barrier()
    if gl.atomic_add(arrived + tile, 1, sem="acq_rel") == 2 * SPLIT - 1:
        gl.store(arrived + tile, 0)


@gluon.jit
def _multiply(
    bias,
    out,
    target,
    num_rows,
    rows,
    tiles,
    seconds,
    result,
    ready,
    free,
    partial,
    arrived,
    first,
    last,
    total,
    width,
    STEPS,
    GATE: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    STAGES: gl.constexpr,
    SPLIT: gl.constexpr,
):
    ROWS: gl.constexpr = out.block_type.shape[0]
    COLUMNS: gl.constexpr = out.block_type.shape[1]
    HALVES: gl.constexpr = 2 if GATE > 0 else 1
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[gl.num_warps(), 1], instr_shape=[16, ROWS, 16]
    )
    down = gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, layout))
    across = gl.arange(0, ROWS, layout=gl.SliceLayout(0, layout))
    cells = down[:, None] * ROWS + across[None, :]
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    count = 0
    unit = first
    while unit < last:
        tile = unit // STEPS
        begin = unit - tile * STEPS
        end = gl.minimum(last - tile * STEPS, STEPS)
        acc = gl.zeros([COLUMNS, ROWS], gl.float32, layout)
        up = gl.zeros([COLUMNS, ROWS], gl.float32, layout)
        for k in range(begin, end):
            stage = count % STAGES
            mbarrier.wait(ready.index(stage), count // STAGES & 1)
            part = rows.index(stage).permute((1, 0))
            acc = warpgroup_mma(tiles.index(stage), part, acc, is_async=True)
            if GATE > 0:
                up = warpgroup_mma(seconds.index(stage), part, up, is_async=True)
                acc, up = warpgroup_mma_wait(num_outstanding=2, deps=[acc, up])
            else:
                acc = warpgroup_mma_wait(num_outstanding=1, deps=[acc])
            # The products of the block before are done: its memory is free.
            mbarrier.arrive(free.index((count + STAGES - 1) % STAGES), pred=k > begin)
            count += 1
        if GATE > 0:
            acc, up = warpgroup_mma_wait(num_outstanding=0, deps=[acc, up])
        else:
            acc = warpgroup_mma_wait(num_outstanding=0, deps=[acc])
        mbarrier.arrive(free.index((count + STAGES - 1) % STAGES))
        if SPLIT > 1:
            _share_out(acc, bias, target, num_rows, partial, arrived, width, HAS_BIAS, SPLIT)
        elif begin > 0:
            # The program that began this tile finishes it.
            place = partial + program * (HALVES * COLUMNS * ROWS) + cells
            gl.store(place, acc)
            if GATE > 0:
                gl.store(place + COLUMNS * ROWS, up)
            gl.thread_barrier()
            gl.atomic_xchg(arrived + program, 1, sem="release")
        else:
            if end < STEPS:
                other = program + 1
                while other * total // programs < (tile + 1) * STEPS:
                    while gl.atomic_add(arrived + other, 0, sem="acquire") == 0:
                        pass
                    place = partial + other * (HALVES * COLUMNS * ROWS) + cells
                    acc += gl.load(place, cache_modifier=".cg")
                    if GATE > 0:
                        up += gl.load(place + COLUMNS * ROWS, cache_modifier=".cg")
                    gl.thread_barrier()
                    gl.store(arrived + other, 0)
                    other += 1
            column = tile * COLUMNS
            if HAS_BIAS:
                inside = column + down < width
                acc += gl.load(bias + column + down, mask=inside, other=0.0).to(gl.float32)[:, None]
            # Rounded as the unfused operations round, so that both give the same results.
            value = acc.to(out.dtype)
            if GATE > 0:
                if HAS_BIAS:
                    inside = column + down < width
                    more = gl.load(bias + width + column + down, mask=inside, other=0.0)
                    up += more.to(gl.float32)[:, None]
                gate = value.to(gl.float32)
                if GATE == 1:
                    gate = gate / (1.0 + gl.exp(-gate))
                else:
                    cubed = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
                    gate = gate / (1.0 + gl.exp(-2.0 * cubed))
                gate = gate.to(out.dtype).to(gl.float32)
                value = (gate * up.to(out.dtype).to(gl.float32)).to(out.dtype)
            tma.store_wait(0)
            result.permute((1, 0)).store(value)
            fence_async_shared()
            tma.async_copy_shared_to_global(out, [0, column], result)
        unit = tile * STEPS + end
    tma.store_wait(0)


@gluon.jit
def _product(
    x,
    weight,
    bias,
    out,
    target,
    partial,
    arrived,
    num_rows,
    width,
    STEPS,
    total,
    GATE: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    STAGES: gl.constexpr,
    SPLIT: gl.constexpr,
):
    ROWS: gl.constexpr = out.block_type.shape[0]
    COLUMNS: gl.constexpr = out.block_type.shape[1]
    BLOCK_K: gl.constexpr = x.block_type.shape[1]
    rows = gl.allocate_shared_memory(x.dtype, [STAGES, ROWS, BLOCK_K], x.layout)
    tiles = gl.allocate_shared_memory(x.dtype, [STAGES, COLUMNS, BLOCK_K], weight.layout)
    seconds = tiles
    if GATE > 0:
        seconds = gl.allocate_shared_memory(x.dtype, [STAGES, COLUMNS, BLOCK_K], weight.layout)
    result = gl.allocate_shared_memory(x.dtype, out.block_type.shape, out.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)
    gdc_launch_dependents()
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    if SPLIT > 1:
        first = program // SPLIT * STEPS + program % SPLIT * STEPS // SPLIT
        last = program // SPLIT * STEPS + (program % SPLIT + 1) * STEPS // SPLIT
    else:
        first = program * total // programs
        last = (program + 1) * total // programs
    gl.warp_specialize(
        [
            (
                _multiply,
                (
                    bias,
                    out,
                    target,
                    num_rows,
                    rows,
                    tiles,
                    seconds,
                    result,
                    ready,
                    free,
                    partial,
                    arrived,
                    first,
                    last,
                    total,
                    width,
                    STEPS,
                    GATE,
                    HAS_BIAS,
                    STAGES,
                    SPLIT,
                ),
            ),
            (
                _ask,
                (
                    x,
                    weight,
                    rows,
                    tiles,
                    seconds,
                    ready,
                    free,
                    first,
                    last,
                    width,
                    STEPS,
                    GATE,
                    STAGES,
                ),
            ),
        ],
        [1],
        [24],
    )


@cache
def _layout(rows: int, columns: int, dtype: gl.dtype) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for([rows, columns], dtype)


def _descriptor(tensor: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    dtype = gl.bfloat16 if tensor.dtype is torch.bfloat16 else gl.float16
    layout = _layout(rows, columns, dtype)
    shape, strides = list(tensor.shape), list(tensor.stride())
    return TensorDescriptor(tensor, shape, strides, [rows, columns], layout)


class HopperFewRows(FewRows):
    """Products on Hopper; owns the memory of partial sums."""

    max_rows = 64

    def __init__(self, device: torch.device) -> None:
        self._num_processors = num_processors(device)
        room = self._num_processors * 2 * 128 * self.max_rows
        self._partial = torch.empty(room, dtype=torch.float32, device=device)
        self._arrived = torch.zeros(self._num_processors + 1, dtype=torch.int32, device=device)

    def serves(self, x: torch.Tensor, weight: torch.Tensor, *, gated: bool = False) -> bool:
        """See ``FewRows``; Triton 3.6 fails to compile a product of one block."""
        return weight.shape[1] > 128 and super().serves(x, weight, gated=gated)

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, act: str = ""
    ) -> torch.Tensor:
        """See ``FewRows``."""
        num_rows, inner = x.shape
        width = weight.shape[0] // (2 if act else 1)
        rows = max(16, triton.next_power_of_2(num_rows))
        cut = self._cut(rows, width, inner, gated=bool(act))
        out = torch.empty((num_rows, width), dtype=x.dtype, device=x.device)
        steps = inner // cut.block_k
        total = width // cut.columns * steps
        _product[(cut.programs,)](
            _descriptor(x, rows, cut.block_k),
            _descriptor(weight, cut.columns, cut.block_k),
            weight if bias is None else bias,
            _descriptor(out, rows, cut.columns),
            out,
            self._partial,
            self._arrived,
            num_rows,
            width,
            steps,
            total,
            GATE=GATES[act],
            HAS_BIAS=bias is not None,
            STAGES=cut.stages,
            SPLIT=cut.split,
            num_warps=cut.num_warps,
            maxnreg=168,
            launch_pdl=True,
        )
        return out

    def _cut(self, rows: int, width: int, inner: int, *, gated: bool) -> _Cut:
        processors = self._num_processors
        columns, block_k, num_warps = 64, 128, 4
        if gated and rows == 64:
            columns, block_k, num_warps = 128, 64, 8
        elif width // 128 >= 4 * processors:
            columns, block_k = 128, 64 if rows == 64 else 128
        tiles = width // columns
        split, programs = 1, min(tiles * (inner // block_k), processors)
        if not gated and tiles <= processors:
            # Pieces that are all alike add up at the same time, each a share of the tile.
            while tiles * split * 2 <= processors and split < 8 and inner // (block_k * split) >= 4:
                split *= 2
            programs = tiles * split
        elif gated and rows == 64 and 2 * tiles > processors >= tiles:
            # Sums of 64 rows and two halves are large: a few idle processors cost less.
            programs = tiles
        stages = RING_BYTES // ((columns * (2 if gated else 1) + rows) * block_k * 2)
        return _Cut(columns, block_k, min(stages, 20), programs, split, num_warps)
