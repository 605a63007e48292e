"""The plan of tiles by native code, which repeats ``tiles.reference_plan`` number for number.

A step waits for its plan: in numpy one takes as long as a tenth of the forward of 64 rows.
"""

from __future__ import annotations

import numpy as np

from radixrt.runtime.attention.tiles import (
    EVEN_PERCENT,
    MIN_PROMPT_KEYS,
    QUEUED_QUARTERS,
    TILE_COST,
    Int32,
    TilePlan,
    Tiles,
    reference_plan,
)

try:
    from radixrt import _native
except ImportError:  # installed without a compiler: ``radixrt doctor`` says so
    _native = None  # type: ignore[assignment]


def plan_tiles(
    query_start: Int32,
    kv_lens: Int32,
    page_table: Int32,
    page_size: int,
    *,
    small_slots: int,
    large_slots: int,
    small_shares: int,
    large_shares: int,
    window: int = 0,
    group: bool = True,
    queue: bool = False,
    min_run_tokens: int = 64,
) -> TilePlan:
    """See ``reference_plan``."""
    if _native is None:
        return reference_plan(
            query_start,
            kv_lens,
            page_table,
            page_size,
            small_slots=small_slots,
            large_slots=large_slots,
            small_shares=small_shares,
            large_shares=large_shares,
            window=window,
            group=group,
            queue=queue,
            min_run_tokens=min_run_tokens,
        )
    small, large, merge_token, merge_start, num_partials, pages = _native.plan_tiles(
        np.ascontiguousarray(query_start, np.int32),
        np.ascontiguousarray(kv_lens, np.int32),
        np.ascontiguousarray(page_table, np.int32),
        page_size,
        small_slots,
        large_slots,
        small_shares,
        large_shares,
        window,
        group,
        queue,
        min_run_tokens,
        MIN_PROMPT_KEYS,
        EVEN_PERCENT,
        QUEUED_QUARTERS,
        TILE_COST,
    )
    return TilePlan(Tiles(*small), Tiles(*large), merge_token, merge_start, num_partials, pages)
