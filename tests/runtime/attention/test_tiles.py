"""The plan of grouped attention: every key exactly once, through the right pages."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from radixrt.errors import InvalidArgument
from radixrt.runtime.attention.planning import plan_tiles
from radixrt.runtime.attention.tiles import (
    EVEN_PERCENT,
    QUEUED_QUARTERS,
    TILE_COST,
    Tiles,
    _cuts,
    _dealt,
    _even,
    _pieces,
    reference_plan,
    shared_runs,
)

Int32 = NDArray[np.int32]


class Batch:
    """A ragged batch whose rows share pages as a random tree does, and rows of nobody, which have
    one token and no keys."""

    def __init__(
        self, seed: int, num_rows: int, page_size: int, prefill: bool, nobodys: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        paths: list[list[int]] = [[]]
        next_page = 1
        for _ in range(num_rows * 2):
            parent = paths[int(rng.integers(len(paths)))]
            length = int(rng.integers(1, 6))
            paths.append([*parent, *range(next_page, next_page + length)])
            next_page += length
        rows = [paths[int(rng.integers(1, len(paths)))] for _ in range(num_rows)]
        # The last page is a row's own: nobody decodes into a page of the tree.
        rows = [[*row, next_page + index] for index, row in enumerate(rows)]
        self.page_size = page_size
        self.page_table = np.zeros((num_rows, max(map(len, rows))), np.int32)
        for index, row in enumerate(rows):
            self.page_table[index, : len(row)] = row
        lens = [(len(row) - 1) * page_size + int(rng.integers(1, page_size + 1)) for row in rows]
        self.kv_lens = np.array(lens, np.int32)
        most = [min(n, 40) if prefill and rng.random() < 0.4 else 1 for n in lens]
        queries = [int(rng.integers(1, n + 1)) for n in most]
        queries += [1] * nobodys
        self.kv_lens = np.pad(self.kv_lens, (0, nobodys))
        self.page_table = np.pad(self.page_table, ((0, nobodys), (0, 0)))
        self.query_start = np.concatenate(([0], np.cumsum(queries))).astype(np.int32)

    def position(self, token: int) -> tuple[int, int]:
        """Return the row of a token and its position there."""
        row = int(np.searchsorted(self.query_start, token, side="right")) - 1
        return row, int(self.kv_lens[row] - self.query_start[row + 1] + token)

    def keys(self, row: int, start: int, end: int) -> list[tuple[int, int]]:
        """Return (page, offset) of each key position."""
        at = range(start, end)
        return [(int(self.page_table[row, p // self.page_size]), p % self.page_size) for p in at]


batches = st.builds(
    Batch,
    seed=st.integers(0, 10_000),
    num_rows=st.integers(1, 24),
    page_size=st.sampled_from([1, 4, 16]),
    prefill=st.booleans(),
    nobodys=st.sampled_from([0, 0, 3]),
)


def visible(
    tiles: Tiles, pages: Int32, batch: Batch, window: int
) -> dict[int, list[tuple[int, int]]]:
    """Return the keys each token meets in these tiles, with the kernel's mask applied."""
    met: dict[int, list[tuple[int, int]]] = {}
    size = batch.page_size
    for index in range(len(tiles.page)):
        for token in tiles.tokens[index][tiles.tokens[index] >= 0].tolist():
            _, position = batch.position(token)
            start, end = int(tiles.kv_start[index]), int(tiles.kv_end[index])
            first = max(start, position - window + 1) if window else start
            at = int(tiles.page[index]) - start // size
            keys = [
                (int(pages[at + p // size]), p % size) for p in range(first, min(end, position + 1))
            ]
            met.setdefault(token, []).extend(keys)
    return met


@settings(max_examples=150, deadline=None)
@given(
    batch=batches,
    window=st.sampled_from([0, 0, 7, 40]),
    group=st.booleans(),
    queue=st.booleans(),
    parallel=st.sampled_from([1, 16, 500]),
    slots=st.sampled_from([1, 4, 16]),
)
def test_every_token_meets_every_key_it_may_see_exactly_once(
    batch: Batch, window: int, group: bool, queue: bool, parallel: int, slots: int
) -> None:
    plan = reference_plan(
        batch.query_start,
        batch.kv_lens,
        batch.page_table,
        batch.page_size,
        small_slots=min(slots, 4),
        large_slots=slots,
        small_shares=parallel,
        large_shares=max(1, parallel // 2),
        window=window,
        group=group,
        queue=queue,
        min_run_tokens=2 * batch.page_size,
    )
    small = visible(plan.small, plan.pages, batch, window)
    large = visible(plan.large, plan.pages, batch, window)
    for token in range(int(batch.query_start[-1])):
        row, position = batch.position(token)
        first = max(0, position - window + 1) if window else 0
        met = small.get(token, []) + large.get(token, [])
        assert sorted(met) == sorted(batch.keys(row, first, position + 1))


@settings(max_examples=100, deadline=None)
@given(batch=batches, parallel=st.sampled_from([1, 500]), queue=st.booleans())
def test_partial_results_are_numbered_once_and_found_by_the_merge(
    batch: Batch, parallel: int, queue: bool
) -> None:
    plan = reference_plan(
        batch.query_start,
        batch.kv_lens,
        batch.page_table,
        batch.page_size,
        small_slots=2,
        large_slots=4,
        small_shares=parallel,
        large_shares=max(1, parallel // 2),
        queue=queue,
        min_run_tokens=batch.page_size,
    )
    pairs = [
        (int(token), int(partial))
        for tiles in (plan.small, plan.large)
        for token, partial in zip(tiles.tokens.ravel(), tiles.partial.ravel(), strict=True)
        if token >= 0
    ]
    whole = [token for token, partial in pairs if partial < 0]
    parts = {partial: token for token, partial in pairs if partial >= 0}
    assert sorted(parts) == list(range(plan.num_partials))
    merged = {
        partial: int(token)
        for index, token in enumerate(plan.merge_token)
        for partial in range(plan.merge_start[index], plan.merge_start[index + 1])
    }
    assert merged == parts
    seeing = [token for token in range(int(batch.query_start[-1])) if batch.position(token)[1] >= 0]
    assert sorted(whole + plan.merge_token.tolist()) == seeing


def test_runs_of_all_levels_are_found_and_short_ones_left_to_the_rows() -> None:
    table = np.array(
        [
            [1, 2, 3, 10, 11, 20],
            [1, 2, 3, 10, 11, 21],
            [1, 2, 3, 12, 22, 0],
            [9, 23, 0, 0, 0, 0],
        ],
        np.int32,
    )
    lengths = np.array([6, 6, 5, 2], np.int32)

    def named(min_pages: int) -> tuple[set[tuple[tuple[int, ...], int, int]], list[int]]:
        runs, own = shared_runs(table, lengths, min_pages)
        return {(tuple(sorted(r.rows.tolist())), r.start, r.end) for r in runs}, own.tolist()

    assert named(1) == ({((0, 1, 2), 0, 3), ((0, 1), 3, 5)}, [5, 5, 3, 0])
    assert named(3) == ({((0, 1, 2), 0, 3)}, [3, 3, 3, 0])
    assert named(4) == ({((0, 1), 0, 5)}, [5, 5, 0, 0])


@pytest.mark.parametrize("num_rows", [0, 1])
def test_nothing_is_shared_by_fewer_than_two_rows(num_rows: int) -> None:
    runs, own = shared_runs(np.ones((num_rows, 3), np.int32), np.full(num_rows, 3, np.int32), 1)
    assert runs == []
    assert own.tolist() == [0] * num_rows


@settings(max_examples=200, deadline=None)
@given(
    lens=st.lists(st.integers(1, 5000), min_size=0, max_size=80),
    shares=st.integers(1, 70),
    unit=st.sampled_from([64, 192]),
)
def test_shares_take_all_pieces_in_order_and_about_as_much_work_each(
    lens: list[int], shares: int, unit: int
) -> None:
    which, begin, share_start = _cuts(np.array(lens, np.int64), shares, unit)
    pieces = list(zip(which.tolist(), begin.tolist(), strict=True))
    assert sorted(set(pieces)) == pieces
    assert [work for work, at in pieces if at == 0] == list(range(len(lens)))
    assert all(at % unit == 0 and at < lens[work] for work, at in pieces)
    assert (share_start[0], share_start[-1], len(share_start)) == (0, len(pieces), shares + 1)
    assert (np.diff(share_start) >= 0).all()
    nexts = [*pieces, (len(lens), 0)][1:]
    sizes = [
        (after[1] if after[0] == work else lens[work]) - at + (TILE_COST if at == 0 else 0)
        for (work, at), after in zip(pieces, nexts, strict=True)
    ]
    even = max(unit, -(-sum(sizes) // shares))
    # A bound moves by half a unit to fall on one, and by an eighth of a share to fall on an edge.
    most = even + 2 * (unit // 2 + max(unit // 4, even // 8) + TILE_COST)
    for first, last in itertools.pairwise(share_start.tolist()):
        assert sum(sizes[first:last]) <= most


@settings(max_examples=200, deadline=None)
@given(
    lens=st.lists(st.integers(1, 5000), min_size=0, max_size=80),
    most=st.sampled_from([64, 384]),
)
def test_pieces_are_even_and_no_longer_than_asked_for(lens: list[int], most: int) -> None:
    which, begin = _pieces(np.array(lens, np.int64), 64, most)
    pieces = list(zip(which.tolist(), begin.tolist(), strict=True))
    assert sorted(set(pieces)) == pieces
    assert [work for work, at in pieces if at == 0] == list(range(len(lens)))
    for work, length in enumerate(lens):
        cuts = [at for other, at in pieces if other == work] + [length]
        sizes = [after - at for at, after in itertools.pairwise(cuts)]
        assert all(0 < size <= most for size in sizes)
        assert len(set(sizes[:-1])) <= 1
        assert sizes[-1] <= sizes[0]


@settings(max_examples=200, deadline=None)
@given(
    cost=st.lists(st.integers(TILE_COST + 1, 400), min_size=1, max_size=80),
    shares=st.integers(1, 70),
)
def test_what_is_dealt_out_is_dealt_out_whole_and_evenly(cost: list[int], shares: int) -> None:
    share_start = _dealt(np.array(cost, np.int64), shares)
    assert (share_start[0], share_start[-1], len(share_start)) == (0, len(cost), shares + 1)
    assert (np.diff(share_start) >= 0).all()
    even = sum(cost) / min(shares, len(cost))
    for first, last in itertools.pairwise(share_start.tolist()):
        assert sum(cost[first:last]) <= even + max(cost)


@settings(max_examples=200, deadline=None)
@given(
    lens=st.lists(st.sampled_from([100, 512, 1000, 1024, 4096]), min_size=1, max_size=70),
    shares=st.integers(1, 70),
)
def test_even_pieces_are_no_more_than_shares_and_none_is_clearly_longer(
    lens: list[int], shares: int
) -> None:
    share = max(64, -(-(sum(lens) + TILE_COST * len(lens)) // shares))
    most = _even(np.array(lens, np.int64), shares, 64, share)
    if most:
        assert 100 * most <= (100 + EVEN_PERCENT) * share
        assert sum(-(-length // most) for length in lens) <= shares
    shorter = range(-(-share // 64) * 64, most or share * (100 + EVEN_PERCENT) // 100 + 1, 64)
    assert all(sum(-(-length // at) for length in lens) > shares for at in shorter)


def test_rows_of_one_length_are_not_cut_into_unlike_pieces() -> None:
    """64 rows for 66 programs: one each. 8 rows: eight programs each."""
    for num_rows, length, pieces in ((64, 1024, 1), (8, 4096, 8)):
        pages = length // 16
        plan = reference_plan(
            np.arange(num_rows + 1, dtype=np.int32),
            np.full(num_rows, length, np.int32),
            np.arange(1, num_rows * pages + 1, dtype=np.int32).reshape(num_rows, pages),
            16,
            small_slots=4,
            large_slots=16,
            small_shares=66,
            large_shares=33,
        )
        lengths = plan.small.kv_end - plan.small.kv_start
        assert lengths.tolist() == [length // pieces] * num_rows * pieces
        assert (np.diff(plan.small.share_start) <= 1).all()


@settings(max_examples=200, deadline=None)
@given(batch=batches, shares=st.sampled_from([1, 4, 66]), window=st.sampled_from([0, 40]))
def test_a_queue_has_its_longest_tiles_first_and_none_that_would_hold_up_its_end(
    batch: Batch, shares: int, window: int
) -> None:
    plan = reference_plan(
        batch.query_start,
        batch.kv_lens,
        batch.page_table,
        batch.page_size,
        small_slots=4,
        large_slots=16,
        small_shares=shares,
        large_shares=shares,
        window=window,
        queue=True,
    )
    lengths = plan.small.kv_end - plan.small.kv_start
    assert plan.small.share_start.tolist() == [0, len(lengths)]
    assert (np.diff(lengths) <= 0).all()
    unit = math.lcm(64, batch.page_size)
    share = (lengths.sum() + (TILE_COST + batch.page_size) * len(lengths)) / shares
    assert (lengths <= max(unit, share * QUEUED_QUARTERS / 4 + unit)).all()


@settings(max_examples=400, deadline=None)
@given(
    batch=batches,
    scale=st.sampled_from([1, 1, 3]),
    window=st.sampled_from([0, 0, 7, 40]),
    group=st.booleans(),
    queue=st.booleans(),
    shares=st.sampled_from([(1, 1), (16, 8), (66, 33), (500, 250)]),
    slots=st.sampled_from([(1, 1), (4, 4), (4, 16)]),
)
def test_the_native_plan_is_the_references(
    batch: Batch,
    scale: int,
    window: int,
    group: bool,
    queue: bool,
    shares: tuple[int, int],
    slots: tuple[int, int],
) -> None:
    pytest.importorskip("radixrt._native", reason="installed without a compiler")
    arguments = (batch.query_start, batch.kv_lens, batch.page_table, batch.page_size)
    options: dict[str, Any] = {
        "small_slots": slots[0],
        "large_slots": slots[1],
        "small_shares": shares[0],
        "large_shares": shares[1],
        "window": window,
        "group": group,
        "queue": queue,
        "min_run_tokens": scale * batch.page_size,
    }
    expected = reference_plan(*arguments, **options)
    got = plan_tiles(*arguments, **options)
    assert got.num_partials == expected.num_partials
    for name in ("merge_token", "merge_start", "pages"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), name)
    for kind in ("small", "large"):
        mine, theirs = getattr(got, kind), getattr(expected, kind)
        for field in dataclasses.fields(Tiles):
            of = f"{kind}.{field.name}"
            np.testing.assert_array_equal(
                getattr(mine, field.name), getattr(theirs, field.name), of
            )
            assert getattr(mine, field.name).dtype == np.int32


def test_a_short_prompt_beside_decoding_rows_has_nothing_to_merge() -> None:
    """Merging the partial results of its tokens would cost more than shorter tiles save."""
    kv_lens = np.array([*[500] * 20, 300], np.int32)
    query_start = np.array([*range(21), 220], np.int32)
    page_table = np.arange(1, 21 * 32 + 1, dtype=np.int32).reshape(21, 32)
    plan = reference_plan(
        query_start,
        kv_lens,
        page_table,
        16,
        small_slots=4,
        large_slots=16,
        small_shares=66,
        large_shares=33,
    )
    assert len(plan.large.page) == 200 // 16 + 1
    assert not (plan.large.partial >= 0).any()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"kv_lens": [4, 1000]}, "kv_lens"),
        ({"kv_lens": [0, 0], "query_start": [0, 1, 3]}, "kv_lens"),
        ({"query_start": [0, 1]}, "query_start"),
        ({"query_start": [0, 2, 1]}, "query_start"),
        ({"page_table": [[1, 2]]}, "page_table"),
        ({"page_size": 0}, "page_size"),
    ],
)
def test_what_is_no_batch_is_refused(changed: dict[str, Any], named: str) -> None:
    pytest.importorskip("radixrt._native", reason="installed without a compiler")
    batch = {"query_start": [0, 1, 2], "kv_lens": [4, 20], "page_table": [[1, 0], [2, 3]]}
    arguments = {key: np.array(changed.get(key, batch[key]), np.int32) for key in batch}
    with pytest.raises(InvalidArgument, match=named):
        plan_tiles(
            **arguments,
            page_size=changed.get("page_size", 16),
            small_slots=4,
            large_slots=16,
            small_shares=8,
            large_shares=4,
        )
