"""Attention in Triton: one kernel over tiles (see ``tiles``), one merge of partial results.

Complete on its own: ragged prefill, decode, decode grouped by shared prefix, GQA, sliding windows,
logit soft-capping, any page size. The online softmax is that of FlashAttention-2 (Dao, 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from radixrt.errors import ConfigError
from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.attention.tiles import TilePlan, Tiles, plan_tiles
from radixrt.runtime.batch import ForwardBatch
from radixrt.runtime.device import Upload


@dataclass(frozen=True, slots=True)
class TileShape:
    """How a launch cuts its work: query rows (tokens × query heads of a key head) and key positions
    a step, and what the compiler gets for it."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


SMALL = TileShape(rows=16, keys=64, num_warps=2, num_stages=3)
"""One decoding token or a group of few: 16 rows is the least a matrix unit takes."""

LARGE = TileShape(rows=64, keys=32, num_warps=4, num_stages=4)
"""A prefill block, or the decoding tokens of a group."""

TILES_PER_PROCESSOR = 4


@triton.jit
def _attend_tiles(
    query,
    k_cache,
    v_cache,
    out,
    partial_out,
    partial_lse,
    positions,
    page_table,
    tile_tokens,
    tile_row,
    tile_start,
    tile_end,
    tile_partial,
    num_tiles,
    scale_log2e,
    softcap,
    window,
    query_token_stride,
    query_head_stride,
    kv_page_stride,
    kv_token_stride,
    kv_head_stride,
    table_stride,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    SLOTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    if tile >= tl.load(num_tiles):
        return
    rows = tl.arange(0, SLOTS * GROUP_PAD)
    dims = tl.arange(0, DIM_PAD)
    token = tl.load(tile_tokens + tile * SLOTS + rows // GROUP_PAD)
    head = kv_head * GROUP + rows % GROUP_PAD
    live = (token >= 0) & (rows % GROUP_PAD < GROUP)
    position = tl.load(positions + token, mask=live, other=0)
    q = tl.load(
        query
        + token[:, None].to(tl.int64) * query_token_stride
        + head[:, None] * query_head_stride
        + dims[None, :],
        mask=live[:, None] & (dims[None, :] < HEAD_DIM),
        other=0.0,
    )
    start = tl.load(tile_start + tile)
    end = tl.load(tile_end + tile)
    pages = page_table + tl.load(tile_row + tile).to(tl.int64) * table_stride

    top = tl.full([SLOTS * GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([SLOTS * GROUP_PAD], tl.float32)
    acc = tl.zeros([SLOTS * GROUP_PAD, DIM_PAD], tl.float32)
    for begin in range(start, end, BLOCK_N):
        at = begin + tl.arange(0, BLOCK_N)
        inside = at < end
        page = tl.load(pages + at // PAGE_SIZE, mask=inside, other=0).to(tl.int64)
        offset = page * kv_page_stride + (at % PAGE_SIZE) * kv_token_stride
        offset += kv_head * kv_head_stride
        k = tl.load(
            k_cache + offset[None, :] + dims[:, None],
            mask=inside[None, :] & (dims[:, None] < HEAD_DIM),
            other=0.0,
        )
        score = tl.dot(q, k)
        if HAS_SOFTCAP:
            # scale_log2e carries log2(e); tanh(x) = 1 - 2 / (exp(2x) + 1).
            capped = score * (scale_log2e / 1.4426950408889634) / softcap
            score = (1 - 2 / (tl.exp2(capped * 2.8853900817779268) + 1)) * (
                softcap * 1.4426950408889634
            )
        else:
            score = score * scale_log2e
        seen = inside[None, :] & (at[None, :] <= position[:, None])
        if HAS_WINDOW:
            seen = seen & (at[None, :] > position[:, None] - window)
        score = tl.where(seen, score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        # A row may have seen nothing yet (window, causal edge): keep -inf - -inf out of exp2.
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(score - shift[:, None])
        decay = tl.exp2(top - shift)
        total = total * decay + tl.sum(weight, 1)
        v = tl.load(
            v_cache + offset[:, None] + dims[None, :],
            mask=inside[:, None] & (dims[None, :] < HEAD_DIM),
            other=0.0,
        )
        acc = acc * decay[:, None] + tl.dot(weight.to(v.dtype), v)
        top = new_top

    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    partial = tl.load(tile_partial + tile * SLOTS + rows // GROUP_PAD)
    whole = live & (partial < 0)
    tl.store(
        out + (token[:, None].to(tl.int64) * NUM_HEADS + head[:, None]) * HEAD_DIM + dims[None, :],
        acc.to(out.dtype.element_ty),
        mask=whole[:, None] & (dims[None, :] < HEAD_DIM),
    )
    piece = live & (partial >= 0)
    place = partial.to(tl.int64) * NUM_HEADS + head
    tl.store(
        partial_out + place[:, None] * HEAD_DIM + dims[None, :],
        acc,
        mask=piece[:, None] & (dims[None, :] < HEAD_DIM),
    )
    tl.store(partial_lse + place, tl.log2(total) + top, mask=piece)


@triton.jit
def _merge_partials(
    partial_out,
    partial_lse,
    out,
    merge_token,
    merge_start,
    num_merges,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
):
    index = tl.program_id(0)
    if index >= tl.load(num_merges):
        return
    head = tl.program_id(1)
    dims = tl.arange(0, DIM_PAD)
    inside = dims < HEAD_DIM
    token = tl.load(merge_token + index).to(tl.int64)
    top = float("-inf")
    total = 0.0
    acc = tl.zeros([DIM_PAD], tl.float32)
    first = tl.load(merge_start + index).to(tl.int64)
    count = tl.load(merge_start + index + 1) - tl.load(merge_start + index)
    for piece in range(0, count):
        place = (first + piece) * NUM_HEADS + head
        lse = tl.load(partial_lse + place)
        part = tl.load(partial_out + place * HEAD_DIM + dims, mask=inside, other=0.0)
        new_top = tl.maximum(top, lse)
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        decay = tl.exp2(top - shift)
        weight = tl.exp2(lse - shift)
        acc = acc * decay + part * weight
        total = total * decay + weight
        top = new_top
    acc = acc / tl.where(total == 0.0, 1.0, total)
    tl.store(
        out + (token * NUM_HEADS + head) * HEAD_DIM + dims,
        acc.to(out.dtype.element_ty),
        mask=inside,
    )


class PlanTooLarge(Exception):
    """A plan does not fit the memory that was set aside for it."""


class _DevicePlan:
    """A ``TilePlan`` on the device: exactly as large as it is, or in memory of a fixed size that a
    recorded graph reads again and again (``refill``)."""

    def __init__(self, plan: TilePlan, device: torch.device) -> None:
        self._size = plan
        self._upload = Upload(_arrays(plan), device)
        self.num_partials = plan.num_partials

    def refill(self, plan: TilePlan) -> None:
        """Overwrite with a plan that is not larger; raises ``PlanTooLarge``."""
        pairs = zip(_arrays(plan), _arrays(self._size), strict=True)
        if plan.num_partials > self.num_partials or any(len(new) > len(old) for new, old in pairs):
            raise PlanTooLarge
        self._upload.refill(_arrays(plan))

    def tiles(self, kind: int) -> tuple[int, int, tuple[torch.Tensor, ...]]:
        """Return (tiles to launch, their slots, the kernel's arguments); kind 0 small, 1 large."""
        tensors = self._upload.tensors[5 * kind : 5 * kind + 5]
        count = self._upload.tensors[-1][kind : kind + 1]
        return tensors[0].shape[0], tensors[0].shape[1], (*tensors, count)

    @property
    def merges(self) -> tuple[int, tuple[torch.Tensor, ...]]:
        """Return (merges to launch, the kernel's arguments)."""
        tokens, starts, counts = self._upload.tensors[-3:]
        return tokens.shape[0], (tokens, starts, counts[2:3])


def _arrays(plan: TilePlan) -> list[NDArray[np.int32]]:
    counts = [len(plan.small.row), len(plan.large.row), len(plan.merge_token)]
    return [
        *(array for tiles in (plan.small, plan.large) for array in _tile_arrays(tiles)),
        plan.merge_token,
        plan.merge_start,
        np.array(counts, np.int32),
    ]


def _tile_arrays(tiles: Tiles) -> tuple[NDArray[np.int32], ...]:
    return tiles.tokens, tiles.row, tiles.kv_start, tiles.kv_end, tiles.partial


def _blank_plan(num_rows: int, parallel: int, small_slots: int, large_slots: int) -> TilePlan:
    """Return a plan as large as that of ``num_rows`` decoding rows usually gets at most."""

    def tiles(count: int, slots: int) -> Tiles:
        members, spans = np.zeros((count, slots), np.int32), np.zeros(count, np.int32)
        return Tiles(members, spans, spans, spans, members)

    num_small = 2 * num_rows + parallel
    num_large = num_rows + parallel
    return TilePlan(
        tiles(num_small, small_slots),
        tiles(num_large, large_slots),
        np.zeros(num_rows, np.int32),
        np.zeros(num_rows + 1, np.int32),
        6 * num_rows + 4 * parallel,
    )


class TritonAttention:
    """The backend "triton". ``group`` False reads a shared prefix once a row (for comparison).

    With ``recorded_rows`` it serves batches of up to so many decoding rows from memory of a fixed
    size and with launches of a fixed size, so that a graph can record ``run``. ``plan`` then raises
    ``PlanTooLarge`` for a batch whose sharing needs more tiles than were set aside.
    """

    name = "triton"

    def __init__(
        self,
        specs: Sequence[AttentionSpec],
        page_size: int,
        device: torch.device,
        *,
        group: bool = True,
        small: TileShape = SMALL,
        large: TileShape = LARGE,
        recorded_rows: int = 0,
    ) -> None:
        heads = {(spec.num_heads, spec.num_kv_heads, spec.head_dim) for spec in specs}
        if len(heads) != 1:
            raise ConfigError(f"attention=triton: layers differ in their heads: {sorted(heads)}")
        self._specs = tuple(specs)
        self._page_size = page_size
        self._device = device
        self._group = group
        self._small = small
        self._large = large
        self._batch: ForwardBatch | None = None
        spec = specs[0]
        processors = 64
        if device.type == "cuda":
            processors = torch.cuda.get_device_properties(device).multi_processor_count
        group_pad = triton.next_power_of_2(spec.num_heads // spec.num_kv_heads)
        self._parallel = max(1, processors * TILES_PER_PROCESSOR // spec.num_kv_heads)
        self._slots = (max(1, small.rows // group_pad), max(1, large.rows // group_pad))
        self._is_recorded = recorded_rows > 0
        self._plans: dict[int, _DevicePlan] = {}
        if recorded_rows:
            blank = _blank_plan(recorded_rows, self._parallel, *self._slots)
            self._plans = {s.window: _DevicePlan(blank, device) for s in specs}

    def plan(self, batch: ForwardBatch) -> None:
        """Plan once for each distinct window of the layers."""
        self._batch = batch
        for window in {spec.window for spec in self._specs}:
            plan = plan_tiles(
                batch.query_start_host,
                batch.kv_lens_host,
                batch.page_table_host,
                self._page_size,
                small_slots=self._slots[0],
                large_slots=self._slots[1],
                parallel=self._parallel,
                window=window,
                group=self._group,
            )
            if self._is_recorded:
                self._plans[window].refill(plan)
            else:
                self._plans[window] = _DevicePlan(plan, self._device)

    def run(
        self, layer: int, query: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
    ) -> torch.Tensor:
        """See ``AttentionBackend.run``."""
        assert self._batch is not None, "run() before plan()"
        spec = self._specs[layer]
        plan = self._plans[spec.window]
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        places = (plan.num_partials, spec.num_heads)
        partial_out = torch.empty(
            (*places, spec.head_dim), dtype=torch.float32, device=query.device
        )
        partial_lse = torch.empty(places, dtype=torch.float32, device=query.device)
        group = spec.num_heads // spec.num_kv_heads
        dim_pad = triton.next_power_of_2(spec.head_dim)
        for kind, shape in enumerate((self._small, self._large)):
            num_tiles, slots, arguments = plan.tiles(kind)
            if not num_tiles:
                continue
            # More than GROUP where a tile takes one token and its heads do not fill the rows.
            group_pad = max(triton.next_power_of_2(group), shape.rows // slots)
            _attend_tiles[(num_tiles, spec.num_kv_heads)](
                query,
                k_cache,
                v_cache,
                out,
                partial_out,
                partial_lse,
                self._batch.positions,
                self._batch.page_table,
                *arguments,
                spec.scale * 1.4426950408889634,
                spec.softcap,
                spec.window,
                query.stride(0),
                query.stride(1),
                k_cache.stride(0),
                k_cache.stride(1),
                k_cache.stride(2),
                self._batch.page_table.stride(0),
                NUM_HEADS=spec.num_heads,
                GROUP=group,
                GROUP_PAD=group_pad,
                SLOTS=slots,
                HEAD_DIM=spec.head_dim,
                DIM_PAD=max(dim_pad, 16),
                PAGE_SIZE=self._page_size,
                BLOCK_N=shape.keys,
                HAS_SOFTCAP=spec.softcap > 0,
                HAS_WINDOW=spec.window > 0,
                num_warps=shape.num_warps,
                num_stages=shape.num_stages,
            )
        num_merges, arguments = plan.merges
        if num_merges:
            _merge_partials[(num_merges, spec.num_heads)](
                partial_out,
                partial_lse,
                out,
                *arguments,
                NUM_HEADS=spec.num_heads,
                HEAD_DIM=spec.head_dim,
                DIM_PAD=dim_pad,
                num_warps=1,
            )
        return out
