"""Attention in Triton: one kernel over tiles (see ``tiles``), one merge of partial results.

Complete on its own: ragged prefill, decode, decode grouped by shared prefix, GQA, sliding windows,
logit soft-capping, any page size. The kernels are in ``triton_tiles``.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from radixrt.errors import ConfigError
from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.attention.planning import plan_tiles
from radixrt.runtime.attention.tiles import TilePlan, Tiles
from radixrt.runtime.attention.triton_tiles import attend_tiles, merge_partials
from radixrt.runtime.batch import ForwardBatch
from radixrt.runtime.device import dependent_launch, num_processors, upload

Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TileShape:
    """How a launch cuts its work: query rows (tokens × query heads of a key head) and key positions
    a step, programs for each processor, and what the compiler gets for it."""

    rows: int
    keys: int
    programs: int
    num_warps: int
    num_stages: int


SMALL = TileShape(rows=16, keys=64, programs=4, num_warps=2, num_stages=3)
"""One decoding token or a group of few: 16 rows is the least a matrix unit takes."""

LONE = TileShape(rows=16, keys=128, programs=1, num_warps=4, num_stages=3)
"""A decoding token that is alone in its step: reading it takes no longer than any latency does, so
its pieces are few, and few are merged."""

LARGE = TileShape(rows=64, keys=32, programs=2, num_warps=4, num_stages=4)
"""A prefill block, or the decoding tokens of a group."""

QUEUE_TOKENS = 96
"""Steps of so many tokens or more queue their small tiles. Of fewer, each program would take one or
two, and some would work on when the others are done: equal shares are faster."""

MERGE_PROGRAMS = 16
"""Programs of a merge for each processor."""

MERGE_PIECES = 16
"""Partial results that a program of the merge reads at once."""


def _arrays(plan: TilePlan) -> list[Int32]:
    """Return a plan as arrays, in the order of ``_DevicePlan``."""
    return [
        np.array([len(plan.merge_token)], np.int32),
        *(array for tiles in (plan.small, plan.large) for array in _tile_arrays(tiles)),
        plan.merge_token,
        plan.merge_start,
        plan.pages,
    ]


def _tile_arrays(tiles: Tiles) -> tuple[Int32, ...]:
    return tiles.tokens, tiles.page, tiles.kv_start, tiles.kv_end, tiles.partial, tiles.share_start


NUM_ARRAYS = 16

_CARVEOUT = 9
"""CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT of CUDA's driver, in per cent."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _DevicePlan:
    """A ``TilePlan`` on the device, and room for its partial results.

    The tensors may be longer than the plan: its shares say which tiles count, and the first tensor
    how many merges.
    """

    tensors: list[torch.Tensor]
    num_partials: int

    @property
    def pages(self) -> torch.Tensor:
        """The pages of all tiles."""
        return self.tensors[-1]

    def tiles(self, kind: int) -> tuple[torch.Tensor, ...]:
        """Return the kernel's arguments for a kind of tiles: 0 small, 1 large."""
        return tuple(self.tensors[1 + 6 * kind : 7 + 6 * kind])

    @property
    def merges(self) -> tuple[int, tuple[torch.Tensor, ...]]:
        """Return (most merges, the kernel's arguments)."""
        tokens, starts = self.tensors[13:15]
        return tokens.shape[0], (tokens, starts, self.tensors[0])


class TritonAttention:
    """The backend "triton". ``group`` False reads a shared prefix once a row (for comparison).

    Its launches can be recorded: ``room`` returns arrays as large as the plans of so many tokens
    get, ``bind`` makes ``run`` read them from memory that stays in place, and ``arrays`` is
    what has to be written there for one batch.
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
        lone: TileShape = LONE,
        large: TileShape = LARGE,
        queue_tokens: int = QUEUE_TOKENS,
    ) -> None:
        heads = {(spec.num_heads, spec.num_kv_heads, spec.head_dim) for spec in specs}
        if len(heads) != 1:
            raise ConfigError(f"attention=triton: layers differ in their heads: {sorted(heads)}")
        self._specs = tuple(specs)
        self._windows = tuple(dict.fromkeys(spec.window for spec in specs))
        self._page_size = page_size
        self._device = device
        self._group = group
        self._small = small
        self._lone = lone
        self._large = large
        self._queue_tokens = queue_tokens
        self._positions: torch.Tensor | None = None
        spec = specs[0]
        processors = num_processors(device)
        group_pad = triton.next_power_of_2(spec.num_heads // spec.num_kv_heads)
        self._processors = processors
        self._slots = (max(1, small.rows // group_pad), max(1, large.rows // group_pad))
        self._plans: dict[int, _DevicePlan] = {}
        self._launch = dependent_launch(device)
        self._kept: set[int] = set()
        # How many tiles were taken from the queue, and how many programs are done; each launch
        # leaves zeros behind.
        self._queue = torch.zeros(2, dtype=torch.int32, device=device)

    def _shapes(self, num_tokens: int) -> tuple[TileShape, TileShape]:
        """Return the shapes of small and large tiles in a step of so many tokens."""
        return self._lone if num_tokens == 1 else self._small, self._large

    def _shares(self, num_tokens: int) -> tuple[int, int]:
        """Return the shares of one key head, of small and large tiles."""
        per_head = self._processors / self._specs[0].num_kv_heads
        small, large = (
            max(1, int(per_head * shape.programs)) for shape in self._shapes(num_tokens)
        )
        return small, large

    def plan(self, batch: ForwardBatch) -> None:
        """Plan once for each distinct window of the layers."""
        plans = self._plan(batch.query_start_host, batch.kv_lens_host, batch.page_table_host)
        arrays = [array for plan in plans for array in _arrays(plan)]
        self.bind(
            upload(arrays, self._device), [plan.num_partials for plan in plans], batch.positions
        )

    def _plan(self, query_start: Int32, kv_lens: Int32, page_table: Int32) -> list[TilePlan]:
        small_shares, large_shares = self._shares(int(query_start[-1]))
        return [
            plan_tiles(
                query_start,
                kv_lens,
                page_table,
                self._page_size,
                small_slots=self._slots[0],
                large_slots=self._slots[1],
                small_shares=small_shares,
                large_shares=large_shares,
                window=window,
                group=self._group,
                queue=int(query_start[-1]) >= self._queue_tokens,
            )
            for window in self._windows
        ]

    # ------------------------------------------------------------ recorded

    def num_partials(self, num_tokens: int) -> list[int]:
        """Return the partial results that ``room`` has a place for, for each plan."""
        # A cut makes two partial results of each token of a tile.
        more = sum(2 * s * n for s, n in zip(self._slots, self._cuts(num_tokens), strict=True))
        return [6 * num_tokens + more] * len(self._windows)

    def _cuts(self, num_tokens: int) -> tuple[int, int]:
        """Return how often small and large tiles are cut at most."""
        small, large = self._shares(num_tokens)
        return (2 * small if num_tokens >= self._queue_tokens else small), large

    def room(self, num_tokens: int, max_pages: int, num_pages: int) -> list[Int32]:
        """Return arrays as large as the plans of ``num_tokens`` tokens usually get at most, with up
        to ``max_pages`` pages a row and ``num_pages`` in the pool."""

        all_shares, cuts = self._shares(num_tokens), self._cuts(num_tokens)

        def tiles(count: int, kind: int) -> Tiles:
            count += cuts[kind] if count else 0
            members = np.zeros((count, self._slots[kind]), np.int32)
            spans, shares = np.zeros(count, np.int32), np.zeros(all_shares[kind] + 1, np.int32)
            return Tiles(members, spans, spans, spans, members, shares)

        blank = TilePlan(
            tiles(2 * num_tokens, 0),
            tiles(0 if num_tokens == 1 else num_tokens, 1),  # a single token is a small tile
            np.zeros(num_tokens, np.int32),
            np.zeros(num_tokens + 1, np.int32),
            0,
            np.zeros(min(num_tokens * max_pages, num_pages + 8 * num_tokens), np.int32),
        )
        arrays = _arrays(blank)
        arrays[0] = np.zeros(1, np.int32)
        return arrays * len(self._windows)

    def arrays(
        self, query_start: Int32, kv_lens: Int32, page_table: Int32, num_partials: list[int]
    ) -> list[Int32] | None:
        """Return the plans of a batch as arrays; None when they have more partial results than the
        places given. Whether the arrays fit is the caller's to see."""
        plans = self._plan(query_start, kv_lens, page_table)
        if any(plan.num_partials > num for plan, num in zip(plans, num_partials, strict=True)):
            return None
        return [array for plan in plans for array in _arrays(plan)]

    def bind(
        self, tensors: list[torch.Tensor], num_partials: list[int], positions: torch.Tensor
    ) -> None:
        """Run with the plans in ``tensors`` and the tokens' ``positions`` from now on."""
        self._positions = positions
        self._plans = {
            window: _DevicePlan(tensors[NUM_ARRAYS * i : NUM_ARRAYS * (i + 1)], num_partials[i])
            for i, window in enumerate(self._windows)
        }

    # ------------------------------------------------------------ run

    def run(
        self, layer: int, query: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
    ) -> torch.Tensor:
        """See ``AttentionBackend.run``."""
        assert self._positions is not None, "run() before plan()"
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
        is_queued = query.shape[0] >= self._queue_tokens
        # Large tiles keep the memory less busy: a queue behind them fills the room that they leave.
        order = (1, 0) if is_queued else (0, 1)
        kinds = [kind for kind in order if plan.tiles(kind)[0].shape[0]]
        shapes, shares = self._shapes(query.shape[0]), self._shares(query.shape[0])
        for index, kind in enumerate(kinds):
            arguments, slots = plan.tiles(kind), self._slots[kind]
            shape = shapes[kind]
            # More than GROUP where a tile takes one token and its heads do not fill the rows.
            group_pad = max(triton.next_power_of_2(group), shape.rows // slots)
            attend_tiles[(shares[kind] * spec.num_kv_heads,)](
                query,
                k_cache,
                v_cache,
                out,
                partial_out,
                partial_lse,
                self._positions,
                plan.pages,
                *arguments,
                self._queue,
                spec.scale * 1.4426950408889634,
                spec.softcap,
                spec.window,
                query.stride(0),
                query.stride(1),
                k_cache.stride(0),
                k_cache.stride(1),
                k_cache.stride(2),
                NUM_HEADS=spec.num_heads,
                NUM_KV_HEADS=spec.num_kv_heads,
                GROUP=group,
                GROUP_PAD=group_pad,
                SLOTS=slots,
                HEAD_DIM=spec.head_dim,
                DIM_PAD=max(dim_pad, 16),
                PAGE_SIZE=self._page_size,
                BLOCK_N=shape.keys,
                HAS_SOFTCAP=spec.softcap > 0,
                HAS_WINDOW=spec.window > 0,
                QUEUED=is_queued and kind == 0,
                FIRST=len(kinds) == 2 and index == 0,
                SECOND=len(kinds) == 2 and index == 1,
                num_warps=shape.num_warps,
                num_stages=shape.num_stages,
                **self._launch,
            )
        num_merges, arguments = plan.merges
        if num_merges:
            items = num_merges * spec.num_heads
            kernel = merge_partials[(min(items, MERGE_PROGRAMS * self._processors),)](
                partial_out,
                partial_lse,
                out,
                *arguments,
                NUM_HEADS=spec.num_heads,
                HEAD_DIM=spec.head_dim,
                DIM_PAD=dim_pad,
                PIECES=MERGE_PIECES,
                num_warps=1,
                **self._launch,
            )
            if self._launch["DEPENDENT"] and kernel.function not in self._kept:
                self._kept.add(kernel.function)
                _keep_shared_memory(kernel.function)
        return out


def _keep_shared_memory(function: int) -> None:
    """Have the processors keep their memory as it is divided while they run the kernel.

    They divide it anew, between cache and memory to share, when they are idle and a kernel of
    another need comes. After one that shares none, a launch that starts beside it finds room for
    one program instead of four, and its other programs wait for that one's end (64 rows of 1,024
    tokens: 93 µs instead of 73).
    """
    driver = ctypes.CDLL("libcuda.so.1")
    code = driver.cuFuncSetAttribute(ctypes.c_void_p(function), _CARVEOUT, 100)
    if code:
        log.warning("cuFuncSetAttribute failed with code %d: attention may be slower", code)
