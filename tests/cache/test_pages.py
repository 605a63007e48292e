"""The page allocator."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixrt.cache.pages import PageAllocator
from radixrt.cache.pagestates import TransferPages
from radixrt.errors import InvalidArgument, OutOfPages


def test_every_page_but_page_0_is_handed_out_once() -> None:
    allocator = PageAllocator(17)
    pages = np.concatenate([allocator.take(5), allocator.take(11)])
    assert sorted(pages.tolist()) == list(range(1, 17))
    assert pages.dtype == np.int32
    assert allocator.num_free == 0


def test_too_many_pages_are_refused_and_none_taken() -> None:
    allocator = PageAllocator(4)
    with pytest.raises(OutOfPages, match="4 pages asked for, 3"):
        allocator.take(4)
    assert allocator.num_free == 3
    with pytest.raises(InvalidArgument):
        allocator.take(-1)


@pytest.mark.parametrize(
    "wrong", [[0], [-1], [8], [5], [1, 1], [1, 2, 1]], ids=lambda pages: f"give {pages}"
)
def test_a_page_that_cannot_be_given_back_is_refused_and_none_is(wrong: list[int]) -> None:
    allocator = PageAllocator(8)
    taken = allocator.take(4)
    assert taken.tolist() == [1, 2, 3, 4]
    with pytest.raises(InvalidArgument, match="pages="):
        allocator.give(np.array(wrong, dtype=np.int32))
    assert allocator.num_free == 3
    allocator.give(taken)
    assert allocator.num_free == 7


@pytest.mark.parametrize(
    "pages", [PageAllocator(8), TransferPages(8)], ids=lambda p: type(p).__name__
)
def test_a_page_given_alone_is_checked_as_among_others(pages: PageAllocator) -> None:
    taken = pages.take(4)
    pages.give_one(int(taken[2]))
    assert pages.num_free == 4
    for wrong in (0, 8, int(taken[2])):
        with pytest.raises(InvalidArgument, match="pages="):
            pages.give_one(wrong)
    assert pages.num_free == 4


def test_a_page_that_is_given_alone_drains_before_it_is_free() -> None:
    pages = TransferPages(8)
    taken = pages.take(1)
    pages.fill(taken)
    pages.publish(taken)
    pages.read(taken)
    pages.give_one(int(taken[0]))
    assert (pages.num_free, pages.num_draining) == (6, 1)
    pages.read_done(taken)
    assert (pages.num_free, pages.num_draining) == (7, 0)


def test_no_pages_can_be_taken_and_given() -> None:
    allocator = PageAllocator(1)
    assert len(allocator.take(0)) == 0
    allocator.give(allocator.take(0))
    with pytest.raises(InvalidArgument):
        PageAllocator(0)


@given(st.lists(st.integers(0, 6), max_size=30), st.randoms(use_true_random=False))
def test_pages_are_conserved(sizes: list[int], random: object) -> None:
    allocator = PageAllocator(33)
    held: list[np.ndarray] = []
    for size in sizes:
        if size <= allocator.num_free and size % 3:
            held.append(allocator.take(size))
        elif held:
            allocator.give(held.pop(size % len(held))[::-1])
        owned = [page for pages in held for page in pages.tolist()]
        assert len(set(owned)) == len(owned)
        assert 0 not in owned
        assert allocator.num_free + len(owned) == 32
        assert not allocator.is_free(np.array(owned, dtype=np.int32)).any()


@given(st.lists(st.integers(1, 8), min_size=1, max_size=20), st.randoms())
def test_sorted_pages_are_handed_out_side_by_side(sizes: list[int], random: Random) -> None:
    allocator = PageAllocator(200)
    held = [allocator.take(n) for n in sizes]
    random.shuffle(held)
    kept = held.pop()
    for pages in held:
        allocator.give(pages)
    allocator.sort()
    free = sorted(set(range(1, 200)) - set(kept.tolist()))
    assert allocator.take(allocator.num_free).tolist() == free
