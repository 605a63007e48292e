"""Which tiles of queries meet which runs of keys: the plan of the grouped attention kernel.

A **tile** is a small set of query tokens and one range of key positions that all of them see
through the same pages. A prefill block is a tile over its own row; a decoding token is a tile over
its own tail; and the decoding tokens of all rows that share a run of pages are one tile over that
run, so a shared page is read once for all of them instead of once a row. A token that occurs in
several tiles gets a partial result from each, merged afterwards by log-sum-exp (as in
FlashDecoding and Hydragen). The kernel knows nothing of prefill, decode or sharing: only tiles.

Rows share a run exactly if their page tables hold the same pages there, because the radix tree
keeps one copy of each page. So the groups are read off the page table, in one sort.

Rows differ in length by orders of magnitude, so tiles are laid end to end and cut into **shares**
of about equal work, one for each program of a launch: a long row is spread over several programs,
several short ones go to one (as in LeanAttention; Sanovar et al., 2024). Where there are many tiles
they are a **queue** instead, the longest first, of which each program takes the next when it is
done with one: hardly any has to be cut, and programs that start late take fewer (longest processing
time first; Graham, 1969).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Work = tuple[Int32, int, int, int]
"""The tokens of a tile that is not cut yet, the place of its first page, kv_start and kv_end."""

_OFFSET = (1 << 32) - 1

MIN_PROMPT_KEYS = 512
"""Tiles are cut into pieces of so many key positions or more in a step with prompts that does not
fill the processors: merging a prompt's tokens costs more than shorter pieces save."""

TILE_COST = 32
"""What beginning a tile takes, in key positions: its first loads wait for each other."""

EVEN_PERCENT = 4
"""Works are cut into equal pieces, one a share, if the longest is longer than an equal share by so
much at most: then no program has to begin twice, and fewer tokens have results to merge."""

QUEUED_QUARTERS = 3
"""Tiles of a queue are cut into pieces of so many quarters of a share at most: the last that a
program takes should not hold up the launch for long."""


@dataclass(frozen=True, slots=True)
class Run:
    """Rows that share the pages ``[start, end)`` of their tables; ``rows`` index the batch."""

    rows: Int32
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Tiles:
    """N tiles of at most S tokens each.

    * ``tokens`` [N, S]: indices into the batch's tokens, -1 where the tile is not full
    * ``page`` [N]: where in ``TilePlan.pages`` the page of position ``kv_start`` stands; those of
      later positions follow
    * ``kv_start``, ``kv_end`` [N]: the range of key positions
    * ``partial`` [N, S]: where each token's partial result goes; -1 if it is the whole result
    * ``share_start`` [P+1]: share p is the tiles ``share_start[p] : share_start[p + 1]``; of a
      queue (0, N)
    """

    tokens: Int32
    page: Int32
    kv_start: Int32
    kv_end: Int32
    partial: Int32
    share_start: Int32


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Small tiles (one decoding token or a group of few), large tiles, and what to merge.

    ``pages`` holds the pages of all tiles, those of a shared run once: what a step has to send to
    the device grows with the pages it reads, not with the length of the context. Token
    ``merge_token[i]`` has the partial results ``merge_start[i] : merge_start[i + 1]``.
    """

    small: Tiles
    large: Tiles
    merge_token: Int32
    merge_start: Int32
    num_partials: int
    pages: Int32


def shared_runs(page_table: Int32, num_pages: Int32, min_pages: int) -> tuple[list[Run], Int32]:
    """Return the runs of pages that two or more rows share, and where each row's own pages begin.

    ``page_table`` is [B, M], ``num_pages`` [B] the valid entries of each row. Runs shorter than
    ``min_pages`` are left to the rows themselves (reading them twice is cheaper than a merge). The
    runs of one row are disjoint and cover ``[0, own)`` together. O(B log B + B M).
    """
    num_rows = len(num_pages)
    own = np.zeros(num_rows, np.int32)
    if num_rows < 2:
        return [], own
    keys = np.ascontiguousarray(page_table).view(np.dtype((np.void, 4 * page_table.shape[1])))
    order = np.argsort(keys.ravel(), kind="stable").astype(np.int32)
    table = page_table[order]
    differs = table[1:] != table[:-1]
    first = np.where(differs.any(axis=1), differs.argmax(axis=1), page_table.shape[1])
    lengths = num_pages[order]
    common = np.minimum(first, np.minimum(lengths[1:], lengths[:-1]))
    if int(common.max()) < min_pages:
        return [], own

    runs: list[Run] = []
    for lo, hi, start, end in _intervals(common.tolist(), min_pages):
        rows = order[lo:hi]
        runs.append(Run(rows, start, end))
        own[rows] = np.maximum(own[rows], end)
    return runs, own


def _intervals(common: list[int], min_pages: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (lo, hi, start, end) for every maximal run of sorted rows [lo, hi) whose neighbours
    have at least ``end`` pages in common and whose enclosing run ends at ``start``.

    The nesting is that of the longest-common-prefix intervals of a suffix array (Abouelhoda et al.,
    2004), walked from the outside in so that runs below ``min_pages`` fall to their children.
    """
    pending = [(0, len(common) + 1, 0)]
    while pending:
        lo, hi, start = pending.pop()
        if hi - lo < 2:
            continue
        inner = common[lo : hi - 1]
        depth = min(inner)
        end = depth if depth - start >= min_pages else start
        if end > start:
            yield lo, hi, start, end
        begin = lo
        for offset, value in enumerate(inner):
            if value == depth:
                pending.append((begin, lo + offset + 1, end))
                begin = lo + offset + 1
        pending.append((begin, hi, end))


class _PageLists:
    """The pages of runs of rows, one list after the other."""

    def __init__(self, page_table: Int32) -> None:
        self._table = page_table
        self._rows: list[Int32] = []
        self._first: list[Int32] = []
        self._counts: list[Int32] = []
        self._num_pages = 0

    def add(self, rows: Int32, first: Int32, end: Int32) -> Int32:
        """Add the pages ``[first, end)`` of each row; return where each list begins."""
        counts = np.maximum(end - first, 0)
        begins = (self._num_pages + np.cumsum(counts) - counts).astype(np.int32)
        self._num_pages += int(counts.sum())
        self._rows.append(rows)
        self._first.append(first)
        self._counts.append(counts)
        return np.asarray(begins, np.int32)

    def all(self) -> Int32:
        """Return the lists of all calls of ``add``, in order."""
        rows, first = np.concatenate(self._rows), np.concatenate(self._first)
        counts = np.concatenate(self._counts)
        offset = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        pages: Int32 = self._table[np.repeat(rows, counts), np.repeat(first, counts) + offset]
        return pages


def reference_plan(
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
    """Return the tiles of a batch (arrays as in ``ForwardBatch``); a row may have no keys: nothing
    is computed for its token.

    ``small_slots`` and ``large_slots`` tokens fit into a small and a large tile; each kind is cut
    into so many shares (of one key head: the programs of a launch divided by the key heads); with
    ``queue`` the small tiles are a queue for so many programs. With a sliding ``window`` nothing is
    grouped: rows of different lengths see different parts of a run.
    ``planning.plan_tiles`` returns the same, in a tenth of the time where it can.
    """
    query_lens = np.diff(query_start)
    decoding = np.flatnonzero(query_lens == 1).astype(np.int32)
    own_start = np.zeros(len(kv_lens), np.int32)
    runs: list[Run] = []
    if group and not window and len(decoding) > 1:
        full_pages = kv_lens[decoding] // page_size
        runs, own = shared_runs(
            page_table[decoding], full_pages, max(1, min_run_tokens // page_size)
        )
        own_start[decoding] = own * page_size
    lists = _PageLists(page_table)
    run_rows = decoding[[int(run.rows[0]) for run in runs]]
    spans = np.array([(run.start, run.end) for run in runs], np.int32).reshape(-1, 2)
    run_pages = lists.add(run_rows, spans[:, 0], spans[:, 1]).tolist()

    small: list[Work] = []
    large: list[Work] = []
    for run, page in zip(runs, run_pages, strict=True):
        rows = decoding[run.rows]
        is_small = len(rows) <= small_slots
        slots = small_slots if is_small else large_slots
        for begin in range(0, len(rows), slots):
            tokens = query_start[rows[begin : begin + slots]]
            work = (tokens, page, run.start * page_size, run.end * page_size)
            (small if is_small else large).append(work)

    # A row of no keys (nobody's) gets no tile: the shortest ones cost far more than their keys.
    decoding = decoding[own_start[decoding] < kv_lens[decoding]]
    own_first = np.maximum(own_start[decoding], kv_lens[decoding] - window if window else 0)
    own_pages = lists.add(decoding, own_first // page_size, -(-kv_lens[decoding] // page_size))
    own = np.full((len(decoding), small_slots), -1, np.int32)
    own[:, 0] = query_start[decoding]
    own_spans = np.stack((own_pages, own_first, kv_lens[decoding]), axis=1)

    prefills = np.flatnonzero(query_lens > 1).astype(np.int32)
    past = kv_lens[prefills] - query_lens[prefills]
    first_page = np.maximum(0, past - window + 1) // page_size if window else np.zeros_like(past)
    last_page = -(-kv_lens[prefills] // page_size)
    begins = lists.add(prefills, first_page, last_page).tolist()
    for row, page, skipped in zip(prefills.tolist(), begins, first_page.tolist(), strict=True):
        before = int(kv_lens[row]) - int(query_lens[row])
        for begin in range(0, int(query_lens[row]), large_slots):
            stop = min(begin + large_slots, int(query_lens[row]))
            tokens = np.arange(query_start[row] + begin, query_start[row] + stop, dtype=np.int32)
            first = max(0, before + begin - window + 1) if window else 0
            large.append((tokens, page + first // page_size - skipped, first, before + stop))

    groups, group_spans = _stacked(small, small_slots)
    return _number_partials(
        int(query_start[-1]),
        _shared_out(
            np.concatenate((groups, own)),
            np.concatenate((group_spans, own_spans)),
            small_shares,
            page_size,
            queue=queue,
        ),
        _shared_out(
            *_stacked(large, large_slots),
            large_shares,
            page_size,
            least=MIN_PROMPT_KEYS if len(prefills) else 0,
        ),
        lists.all(),
    )


def _stacked(works: list[Work], slots: int) -> tuple[Int32, Int32]:
    """Return the tokens [N, slots] of works and their spans [N, 3] = (page, kv_start, kv_end)."""
    tokens = np.full((len(works), slots), -1, np.int32)
    for index, (members, _, _, _) in enumerate(works):
        tokens[index, : len(members)] = members
    return tokens, np.array([work[1:] for work in works], np.int32).reshape(-1, 3)


def _shared_out(
    tokens: Int32,
    spans: Int32,
    shares: int,
    page_size: int,
    *,
    queue: bool = False,
    least: int = 0,
) -> Tiles:
    """Return the tiles of works (as ``_stacked`` returns them), cut into at most ``shares``: into
    equal pieces, one a share, where their lengths allow it; where shares would be of fewer than
    ``least`` key positions, into pieces of about so many. Or a ``queue`` of them."""
    page, start, end = spans.T
    base = start - start % page_size  # where a window begins within a page
    # In whole pages, so that a tile begins with a page, and in whole blocks of keys.
    unit = math.lcm(64, page_size)
    lens = (end - base).astype(np.int64)
    total = int((lens + TILE_COST).sum())
    is_dealt = total < shares * least
    most = least
    if queue:
        most = max(unit, -(-QUEUED_QUARTERS * total // (4 * shares)))
    elif not is_dealt:
        most = _even(lens, shares, unit, max(unit, -(-total // shares)))
    if most:
        which, offset = _pieces(lens, unit, most)
        share_start = np.minimum(np.arange(shares + 1), len(which))
    else:
        which, offset, share_start = _cuts(lens, shares, unit)
    is_last = np.append(which[1:] != which[:-1], True) if len(which) else np.zeros(0, bool)
    stop = np.where(is_last, end[which], base[which] + np.roll(offset, -1))
    begin = np.maximum(start[which], base[which] + offset)
    order = np.arange(len(which))
    if queue:
        share_start = np.array([0, len(which)])
        order = np.argsort(begin - stop, kind="stable")
    elif is_dealt:
        share_start = _dealt(stop - base[which] - offset + TILE_COST, shares)
    return Tiles(
        tokens[which[order]],
        (page[which] + offset // page_size)[order].astype(np.int32),
        begin[order].astype(np.int32),
        stop[order].astype(np.int32),
        np.full((len(which), tokens.shape[1]), -1, np.int32),
        share_start.astype(np.int32),
    )


def _cuts(lens: Int64, shares: int, unit: int) -> tuple[Int64, Int64, Int64]:
    """Cut works of ``lens`` key positions, laid end to end, into at most ``shares`` equal shares.

    Returns of each piece its work and where it begins there, a multiple of ``unit``, in order; and
    the pieces at which shares begin [shares + 1]. A cut that would leave next to nothing of a work
    on one side falls to its edge: every piece more has a cost.
    """
    num_works = len(lens)
    through = np.cumsum(lens + TILE_COST)
    total = int(through[-1]) if num_works else 0
    step = max(unit, -(-total // shares))
    bounds = np.arange(step, total, step, dtype=np.int64)
    at = np.searchsorted(through, bounds, side="right")
    inside = bounds - (through[at] - lens[at])
    inside = (inside + unit // 2) // unit * unit
    least = max(unit // 4, step // 8)
    inside[inside < least] = 0
    is_past = inside > lens[at] - least
    at, inside = at + is_past, np.where(is_past, 0, inside)
    keys = at << 32 | inside  # in ascending order, as the bounds are
    keys = keys[(keys > 0) & (keys < num_works << 32)]
    keys = keys[np.diff(keys, prepend=-1) != 0]
    begins = np.arange(num_works, dtype=np.int64) << 32
    pieces = np.concatenate((begins, keys[keys & _OFFSET != 0]))
    pieces.sort()
    share_start = np.full(shares + 1, len(pieces), np.int64)
    share_start[0] = 0
    share_start[1 : len(keys) + 1] = np.searchsorted(pieces, keys)
    return pieces >> 32, pieces & _OFFSET, share_start


def _even(lens: Int64, shares: int, unit: int, share: int) -> int:
    """Return the least number of key positions, in whole units, of which works have no more pieces
    than ``shares``; 0 if that is clearly more than an equal ``share`` is."""
    clearly_more = (100 + EVEN_PERCENT) * share // 100 + 1
    for most in range(-(-share // unit) * unit, clearly_more, unit):
        if int((-(-lens // most)).sum()) <= shares:
            return most
    return 0


def _pieces(lens: Int64, unit: int, most: int) -> tuple[Int64, Int64]:
    """Cut each work of ``lens`` key positions into equal pieces of about ``most`` at most, in whole
    units. Returns of each piece its work and where it begins there, in order."""
    counts = -(-lens // most)
    each = -(-lens // (counts * unit)) * unit
    counts = -(-lens // each)
    which = np.repeat(np.arange(len(lens)), counts)
    offset = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * each[which]
    return which, offset


def _dealt(cost: Int64, shares: int) -> Int64:
    """Deal pieces of such ``cost`` out in order; return where shares begin [shares + 1]."""
    middle = np.cumsum(cost) - cost // 2
    share = middle * min(shares, len(cost)) // max(1, int(cost.sum()))
    return np.searchsorted(share, np.arange(shares + 1))


def _number_partials(num_tokens: int, small: Tiles, large: Tiles, pages: Int32) -> TilePlan:
    """Give every (tile, token) of a token with several tiles its place among the partial results.

    Fills ``partial`` of both in place.
    """
    flat = np.concatenate((small.tokens.ravel(), large.tokens.ravel()))
    used = np.flatnonzero(flat >= 0)
    counts = np.bincount(flat[used], minlength=num_tokens)
    merged = np.flatnonzero(counts > 1).astype(np.int32)
    several = used[counts[flat[used]] > 1]
    by_token = several[np.argsort(flat[several], kind="stable")]
    partial = np.full(len(flat), -1, np.int32)
    partial[by_token] = np.arange(len(by_token), dtype=np.int32)
    small.partial[:] = partial[: small.tokens.size].reshape(small.partial.shape)
    large.partial[:] = partial[small.tokens.size :].reshape(large.partial.shape)
    merge_start = np.concatenate(([0], np.cumsum(counts[merged]))).astype(np.int32)
    return TilePlan(small, large, merged, merge_start, len(by_token), pages)
