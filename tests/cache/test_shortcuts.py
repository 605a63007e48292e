"""A shortcut leads where a walk leads, whatever has happened to the tree meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from radixrt.cache import shortcuts
from radixrt.cache.node import TOKEN_BYTES, encode
from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import RadixCache
from radixrt.cache.shortcuts import Shortcuts

Int32 = NDArray[np.int32]
SIZE = 4
PATH_PAGES = 50
LONG = np.arange(4 * PATH_PAGES, dtype=np.int32)
"""A prompt that others branch off on every page."""


def insert(cache: RadixCache, allocator: PageAllocator, token_ids: Int32) -> None:
    lease = cache.acquire("a", token_ids)
    new = cache.take(len(token_ids) // SIZE - len(lease.pages))
    allocator.give(lease.extend(token_ids, np.concatenate([lease.pages, new])).duplicates)
    lease.release()


@pytest.fixture
def allocator() -> PageAllocator:
    return PageAllocator(1000)


@pytest.fixture
def cache(allocator: PageAllocator) -> RadixCache:
    cache = RadixCache(allocator, SIZE, clock=iter(range(100_000)).__next__)
    insert(cache, allocator, LONG)
    for page in range(PATH_PAGES):
        branch = np.concatenate([LONG[: page * SIZE], np.full(SIZE, 1000 + page)])
        insert(cache, allocator, branch.astype(np.int32))
    cache.peek("a", LONG)
    return cache


def found(cache: RadixCache, token_ids: Int32) -> int:
    """Return the tokens before the node from which a search sets out."""
    root = cache.tree.roots["a"]
    return cache.tree.search.shortcuts.find(root, encode(token_ids)).end // TOKEN_BYTES


def test_no_walk_is_long_the_second_time(cache: RadixCache) -> None:
    start = found(cache, LONG)
    assert start >= len(LONG) - shortcuts.MIN_NODES * SIZE
    assert found(cache, np.append(LONG, 5).astype(np.int32)) == start
    assert found(cache, LONG[: start - 1]) == start - SIZE
    assert found(cache, LONG[1:]) == 0
    assert cache.peek("a", LONG) == len(LONG)


def test_what_has_left_the_tree_is_passed_on_the_way_up(cache: RadixCache) -> None:
    for kept in range(PATH_PAGES, 0, -1):
        cache.forget("a", LONG, kept)
        assert cache.peek("a", LONG) == kept * SIZE
        assert found(cache, LONG) <= kept * SIZE
        cache.check()


def test_an_end_that_grew_another_way_is_not_taken_for_the_old_one(
    cache: RadixCache, allocator: PageAllocator
) -> None:
    cache.evict(10)
    end = cache.peek("a", LONG)
    for kept in (end, end // 2):
        cache.forget("a", LONG, kept // SIZE)
        lost = len(LONG) - kept
        other = np.concatenate([LONG[:kept], np.full(lost, 7)]).astype(np.int32)
        insert(cache, allocator, other)
        assert cache.peek("a", LONG) == kept
        assert cache.peek("a", other) == len(other)


def test_a_run_that_was_cut_and_grew_again_is_not_taken_for_the_old_one(
    allocator: PageAllocator,
) -> None:
    cache = RadixCache(allocator, SIZE)
    cache.tree.search.shortcuts = Shortcuts(cache.tree.page_bytes, min_nodes=1)
    insert(cache, allocator, LONG)
    assert cache.peek("a", LONG) == len(LONG)
    cache.evict(PATH_PAGES // 2)
    kept = cache.peek("a", LONG)
    other = np.concatenate([LONG[:kept], np.full(len(LONG) - kept, 7)]).astype(np.int32)
    insert(cache, allocator, other)
    assert cache.peek("a", LONG) == kept
    assert cache.peek("a", other) == len(other)


def test_a_run_that_was_joined_to_another_is_not_taken_for_what_grew_in_its_place(
    allocator: PageAllocator,
) -> None:
    cache = RadixCache(allocator, SIZE)
    cache.tree.search.shortcuts = Shortcuts(cache.tree.page_bytes, min_nodes=1)
    head = cache.acquire("a", LONG[:8])
    head.extend(LONG[:8], cache.take(2))
    head.park(0.0)  # so that what follows is a node of its own
    insert(cache, allocator, LONG[:24])
    lease = cache.acquire("a", LONG[:16])
    assert cache.peek("a", LONG[:16]) == 16, "leaves a shortcut to the end of the lease"
    lease.release()
    cache.acquire("a", LONG[:20]).release()  # joins the run that the lease had cut
    cache.acquire("a", LONG[:16]).release()  # cuts it again: another node
    head.release()
    cache.forget("a", LONG, 2)
    other = np.concatenate([LONG[:8], np.full(4, 7)]).astype(np.int32)
    insert(cache, allocator, other)
    assert cache.peek("a", LONG[:16]) == 8
    assert cache.peek("a", other) == 12


def test_nothing_of_an_emptied_namespace_is_found_in_its_successor(
    cache: RadixCache, allocator: PageAllocator
) -> None:
    cache.clear()
    insert(cache, allocator, LONG[:8])
    assert cache.peek("a", LONG) == 8


def test_shortcuts_have_a_bounded_memory(
    cache: RadixCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortcuts, "MAX_BYTES", 3 * LONG.nbytes)
    remembered = Shortcuts(cache.tree.page_bytes, min_nodes=1)
    root = cache.tree.roots["a"]
    found = cache.tree.match(root, encode(LONG))
    keys = [encode((LONG + 1000 * i).astype(np.int32)) for i in range(10)]
    for key in keys:
        remembered.note(root, key, found.end, len(found.path(root)))
    assert remembered.keys(root) == keys[-3:], "the latest three fit"
