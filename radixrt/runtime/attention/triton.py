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
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
):
    index = tl.program_id(0)
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


class _DeviceTiles:
    """The arrays of ``Tiles`` on the device, as views of the step's one upload."""

    def __init__(self, tiles: Tiles, upload: dict[int, torch.Tensor]) -> None:
        self.num_tiles, self.slots = tiles.tokens.shape
        arrays = (tiles.tokens, tiles.row, tiles.kv_start, tiles.kv_end, tiles.partial)
        self.arguments = tuple(upload[id(array)] for array in arrays)


class _DevicePlan:
    """A ``TilePlan`` on the device."""

    def __init__(self, plan: TilePlan, device: torch.device) -> None:
        arrays = [
            array
            for tiles in (plan.small, plan.large)
            for array in (tiles.tokens, tiles.row, tiles.kv_start, tiles.kv_end, tiles.partial)
        ]
        arrays += [plan.merge_token, plan.merge_start]
        upload = _upload(arrays, device)
        self.small = _DeviceTiles(plan.small, upload)
        self.large = _DeviceTiles(plan.large, upload)
        self.merge_token = upload[id(plan.merge_token)]
        self.merge_start = upload[id(plan.merge_start)]
        self.num_merges = len(plan.merge_token)
        self.num_partials = plan.num_partials


def _upload(arrays: Sequence[NDArray[np.int32]], device: torch.device) -> dict[int, torch.Tensor]:
    """Copy several int32 arrays to the device in one transfer; keyed by the arrays' ``id``."""
    packed = torch.empty(sum(array.size for array in arrays), dtype=torch.int32)
    if device.type != "cpu":
        packed = packed.pin_memory()
    host = packed.numpy()
    begin = 0
    spans = []
    for array in arrays:
        host[begin : begin + array.size] = array.ravel()
        spans.append((id(array), begin, begin + array.size))
        begin += array.size
    moved = packed.to(device, non_blocking=True)
    return {key: moved[lo:hi] for key, lo, hi in spans}


class TritonAttention:
    """The backend "triton". ``group`` False reads a shared prefix once a row (for comparison)."""

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
        self._plans: dict[int, _DevicePlan] = {}
        self._batch: ForwardBatch | None = None
        processors = 64
        if device.type == "cuda":
            processors = torch.cuda.get_device_properties(device).multi_processor_count
        self._parallel = processors * TILES_PER_PROCESSOR

    def plan(self, batch: ForwardBatch) -> None:
        """Plan once for each distinct window of the layers."""
        spec = self._specs[0]
        group_pad = triton.next_power_of_2(spec.num_heads // spec.num_kv_heads)
        self._batch = batch
        self._plans = {
            window: _DevicePlan(
                plan_tiles(
                    batch.query_start_host,
                    batch.kv_lens_host,
                    batch.page_table_host,
                    self._page_size,
                    small_slots=max(1, self._small.rows // group_pad),
                    large_slots=max(1, self._large.rows // group_pad),
                    parallel=max(1, self._parallel // spec.num_kv_heads),
                    window=window,
                    group=self._group,
                ),
                self._device,
            )
            for window in {spec.window for spec in self._specs}
        }

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
        for tiles, shape in ((plan.small, self._small), (plan.large, self._large)):
            if not tiles.num_tiles:
                continue
            # More than GROUP where a tile takes one token and its heads do not fill the rows.
            group_pad = max(triton.next_power_of_2(group), shape.rows // tiles.slots)
            _attend_tiles[(tiles.num_tiles, spec.num_kv_heads)](
                query,
                k_cache,
                v_cache,
                out,
                partial_out,
                partial_lse,
                self._batch.positions,
                self._batch.page_table,
                *tiles.arguments,
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
                SLOTS=tiles.slots,
                HEAD_DIM=spec.head_dim,
                DIM_PAD=max(dim_pad, 16),
                PAGE_SIZE=self._page_size,
                BLOCK_N=shape.keys,
                HAS_SOFTCAP=spec.softcap > 0,
                HAS_WINDOW=spec.window > 0,
                num_warps=shape.num_warps,
                num_stages=shape.num_stages,
            )
        if plan.num_merges:
            _merge_partials[(plan.num_merges, spec.num_heads)](
                partial_out,
                partial_lse,
                out,
                plan.merge_token,
                plan.merge_start,
                NUM_HEADS=spec.num_heads,
                HEAD_DIM=spec.head_dim,
                DIM_PAD=dim_pad,
                num_warps=1,
            )
        return out
