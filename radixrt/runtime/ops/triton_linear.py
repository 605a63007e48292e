"""Products with few rows in Triton: they take as long as the weights take to be read.

The weights' rows are the long side of the matrix unit and the few rows of x its short side. Work
is cut along the inner dimension as well where there are fewer tiles than processors; the last
piece of a tile adds all of them up, in their order, so that results do not vary from run to run.

Before it waits for what it depends on, a product asks for its first weights: with programmatic
dependent launch it starts while the kernel before it still runs, and the memory is never idle in
between.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from radixrt.runtime.device import dependent_launch, num_processors
from radixrt.runtime.ops.few_rows import GATES, FewRows

PREFETCH_BYTES = 16 << 10
"""Weights that a program asks for before it may read x."""

_MAX_TILES = 1 << 14


@dataclass(frozen=True, slots=True)
class _Cut:
    """How a product is cut into programs: rows of weights and inner elements a step, pieces of the
    inner dimension, and what the compiler gets for it."""

    block_n: int
    block_k: int
    split: int
    num_stages: int
    num_warps: int


@triton.jit
def _prefetch(weight, rows, K, start, end, BYTES: tl.constexpr):
    # One request a cache line of 128 bytes, for as many as fit BYTES.
    lines: tl.constexpr = BYTES // (rows.shape[0] * 128)
    at = start + tl.arange(0, lines) * 64
    address = weight + rows[:, None].to(tl.int64) * K + tl.minimum(at, end - 1)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [address.to(tl.int64, bitcast=True)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _product(
    x,
    weight,
    bias,
    out,
    partial,
    arrived,
    num_rows,
    width,
    K,
    x_stride,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DEPENDENT: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    tile = tl.program_id(0)
    piece = tl.program_id(1)
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.arange(0, ROWS)
    inner = tl.arange(0, BLOCK_K)
    steps = tl.cdiv(K, BLOCK_K * SPLIT)
    start = piece * steps * BLOCK_K
    end = tl.minimum(start + steps * BLOCK_K, K)
    if DEPENDENT:
        gdc_launch_dependents()
        _prefetch(weight, columns, K, start, end, PREFETCH)
        gdc_wait()
    live = (rows < num_rows)[None, :]
    x_at = x + rows[None, :] * x_stride + inner[:, None]
    weight_at = weight + columns[:, None].to(tl.int64) * K + inner[None, :]
    acc = tl.zeros([BLOCK_N, ROWS], tl.float32)
    up = tl.zeros([BLOCK_N, ROWS], tl.float32)
    for k in range(start, end, BLOCK_K):
        part = tl.load(x_at + k, mask=live, other=0.0)
        acc = tl.dot(tl.load(weight_at + k, eviction_policy="evict_first"), part, acc)
        if GATE:
            second = tl.load(weight_at + width.to(tl.int64) * K + k, eviction_policy="evict_first")
            up = tl.dot(second, part, up)
    is_last = True
    if SPLIT > 1:
        place = partial + (tile * SPLIT + piece) * BLOCK_N * ROWS
        cells = tl.arange(0, BLOCK_N)[:, None] * ROWS + rows[None, :]
        tl.store(place + cells, acc)
        tl.debug_barrier()
        is_last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == SPLIT - 1
        if is_last:
            acc = tl.zeros([BLOCK_N, ROWS], tl.float32)
            for other in range(SPLIT):
                place = partial + (tile * SPLIT + other) * BLOCK_N * ROWS
                acc += tl.load(place + cells, cache_modifier=".cg")
            tl.store(arrived + tile, 0)
    if is_last:
        if HAS_BIAS:
            acc += tl.load(bias + columns)[:, None].to(tl.float32)
        # Rounded as the unfused operations round, so that both give the same results.
        result = acc.to(out.dtype.element_ty)
        if GATE:
            if HAS_BIAS:
                up += tl.load(bias + width + columns)[:, None].to(tl.float32)
            gate = result.to(tl.float32)
            if GATE == 1:
                gate = gate / (1.0 + tl.exp(-gate))
            else:
                cubed = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
                gate = gate / (1.0 + tl.exp(-2.0 * cubed))
            result = gate.to(out.dtype.element_ty) * up.to(out.dtype.element_ty)
        tl.store(out + rows[None, :] * width + columns[:, None], result, mask=live)


class TritonFewRows(FewRows):
    """Products on any device of Triton's; owns the memory of partial sums."""

    max_rows = 32

    def __init__(self, device: torch.device) -> None:
        self._num_processors = num_processors(device)
        self._launch = dependent_launch(device)
        self._partial = torch.empty(4 << 20, dtype=torch.float32, device=device)
        self._arrived = torch.zeros(_MAX_TILES, dtype=torch.int32, device=device)

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, act: str = ""
    ) -> torch.Tensor:
        """See ``FewRows``."""
        rows, inner = x.shape
        width = weight.shape[0] // (2 if act else 1)
        cut = self._cut(width, inner, gated=bool(act))
        padded = max(16, triton.next_power_of_2(rows))
        out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
        _product[(width // cut.block_n, cut.split)](
            x,
            weight,
            weight if bias is None else bias,
            out,
            self._partial,
            self._arrived,
            rows,
            width,
            inner,
            x.stride(0),
            ROWS=padded,
            BLOCK_N=cut.block_n,
            BLOCK_K=cut.block_k,
            SPLIT=cut.split,
            GATE=GATES[act],
            HAS_BIAS=bias is not None,
            PREFETCH=PREFETCH_BYTES,
            num_warps=cut.num_warps,
            num_stages=cut.num_stages,
            **self._launch,
        )
        return out

    def _cut(self, width: int, inner: int, *, gated: bool) -> _Cut:
        tiles = width // 64
        if gated:
            return _Cut(64, 64, 1, 5, 4)
        if tiles >= 8 * self._num_processors:
            return _Cut(128, 128, 1, 4, 4)
        split = 1
        while tiles * split * 2 <= 2 * self._num_processors and split < 8:
            split *= 2
        while split > 1 and inner // (128 * split) < 4:
            split //= 2
        return _Cut(64, 128, split, 4, 4)
