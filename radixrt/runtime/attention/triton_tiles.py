"""The kernels of tiled attention: queries of a tile against its keys, and the merge of parts.

The online softmax is that of FlashAttention-2 (Dao, 2023), the merge that of FlashDecoding.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def attend_tiles(
    query,
    k_cache,
    v_cache,
    out,
    partial_out,
    partial_lse,
    positions,
    pages,
    tile_tokens,
    tile_page,
    tile_start,
    tile_end,
    tile_partial,
    share_start,
    queue,
    scale_log2e,
    softcap,
    window,
    query_token_stride,
    query_head_stride,
    kv_page_stride,
    kv_token_stride,
    kv_head_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    SLOTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    DEPENDENT: tl.constexpr,
    QUEUED: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    # The SECOND of two launches runs at the same time as the FIRST: it starts when all programs of
    # that one have what they wait for, and so has it; it ends after that one, for whoever follows.
    if DEPENDENT and not FIRST:
        gdc_launch_dependents()
    if DEPENDENT and not SECOND:
        gdc_wait()
    if DEPENDENT and FIRST:
        gdc_launch_dependents()
    # Items are the tiles of a share for one key head, or of a queue all tiles for all key heads.
    if QUEUED:
        item, end_item = tl.program_id(0), tl.load(share_start + 1) * NUM_KV_HEADS
    else:
        share, share_head = tl.program_id(0) // NUM_KV_HEADS, tl.program_id(0) % NUM_KV_HEADS
        item, end_item = tl.load(share_start + share), tl.load(share_start + share + 1)
    rows = tl.arange(0, SLOTS * GROUP_PAD)
    dims = tl.arange(0, DIM_PAD)
    while item < end_item:
        if QUEUED:
            # Asked for before the work, which hides how long the answer takes.
            following = tl.num_programs(0) + tl.atomic_add(queue, 1, sem="relaxed")
            tile, kv_head = item // NUM_KV_HEADS, item % NUM_KV_HEADS
        else:
            tile, kv_head = item, share_head
        head = kv_head * GROUP + rows % GROUP_PAD
        token = tl.load(tile_tokens + tile * SLOTS + rows // GROUP_PAD)
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
        tile_pages = pages + tl.load(tile_page + tile) - start // PAGE_SIZE

        top = tl.full([SLOTS * GROUP_PAD], float("-inf"), tl.float32)
        total = tl.zeros([SLOTS * GROUP_PAD], tl.float32)
        acc = tl.zeros([SLOTS * GROUP_PAD, DIM_PAD], tl.float32)
        for begin in range(start, end, BLOCK_N):
            at = begin + tl.arange(0, BLOCK_N)
            inside = at < end
            page = tl.load(tile_pages + at // PAGE_SIZE, mask=inside, other=0).to(tl.int64)
            offset = page * kv_page_stride + (at % PAGE_SIZE) * kv_token_stride
            offset += kv_head * kv_head_stride
            k = tl.load(
                k_cache + offset[None, :] + dims[:, None],
                mask=inside[None, :] & (dims[:, None] < HEAD_DIM),
                other=0.0,
            )
            score = tl.dot(q, k, input_precision="ieee")  # of no effect on half precision
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
            acc = acc * decay[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
            top = new_top

        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        partial = tl.load(tile_partial + tile * SLOTS + rows // GROUP_PAD)
        whole = live & (partial < 0)
        tl.store(
            out
            + (token[:, None].to(tl.int64) * NUM_HEADS + head[:, None]) * HEAD_DIM
            + dims[None, :],
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
        item = following if QUEUED else item + 1
    if QUEUED:
        num_done = tl.atomic_add(queue + 1, 1, sem="acq_rel") + 1
        if num_done == tl.num_programs(0):  # the last one leaves an empty queue to the next launch
            tl.store(queue, 0)
            tl.store(queue + 1, 0)
    if DEPENDENT and SECOND:
        gdc_wait()


@triton.jit
def merge_partials(
    partial_out,
    partial_lse,
    out,
    merge_token,
    merge_start,
    num_merges,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    PIECES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    # What to merge is the host's plan, which no kernel writes. Whoever follows is started when the
    # tiles have ended, not before: the registers that these programs hold while they wait would
    # keep a part of the next launch for a second round.
    num_items = tl.load(num_merges) * NUM_HEADS
    item = tl.program_id(0)
    token, first, end = _merge(merge_token, merge_start, item // NUM_HEADS, item < num_items)
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
    dims = tl.arange(0, DIM_PAD)
    inside = dims < HEAD_DIM
    while item < num_items:
        head = item % NUM_HEADS
        top = float("-inf")
        total = 0.0
        acc = tl.zeros([DIM_PAD], tl.float32)
        for begin in range(first, end, PIECES):
            piece = begin + tl.arange(0, PIECES)
            place = piece.to(tl.int64) * NUM_HEADS + head
            lse = tl.load(partial_lse + place, mask=piece < end, other=float("-inf"))
            parts = tl.load(
                partial_out + place[:, None] * HEAD_DIM + dims[None, :],
                mask=(piece < end)[:, None] & inside[None, :],
                other=0.0,
            )
            new_top = tl.maximum(top, tl.max(lse))
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
            decay = tl.exp2(top - shift)
            weight = tl.exp2(lse - shift)
            acc = acc * decay + tl.sum(parts * weight[:, None], 0)
            total = total * decay + tl.sum(weight)
            top = new_top
        acc = acc / tl.where(total == 0.0, 1.0, total)
        tl.store(
            out + (token.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM + dims,
            acc.to(out.dtype.element_ty),
            mask=inside,
        )
        item += tl.num_programs(0)
        token, first, end = _merge(merge_token, merge_start, item // NUM_HEADS, item < num_items)


@triton.jit
def _merge(merge_token, merge_start, index, exists):
    token = tl.load(merge_token + index, mask=exists, other=0)
    first = tl.load(merge_start + index, mask=exists, other=0)
    return token, first, tl.load(merge_start + index + 1, mask=exists, other=0)
