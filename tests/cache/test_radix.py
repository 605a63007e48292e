"""Behaviour of the prefix cache that one example shows best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from radixrt.cache.node import Node
from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import Lease, RadixCache
from radixrt.cache.search import below
from radixrt.errors import InvalidArgument, OutOfPages

Int32 = NDArray[np.int32]
PAGE_SIZE = 4


def ids(*tokens: int) -> Int32:
    return np.array(tokens, dtype=np.int32)


def upto(n: int) -> Int32:
    return np.arange(n, dtype=np.int32)


@pytest.fixture
def allocator() -> PageAllocator:
    return PageAllocator(1000)


@pytest.fixture
def cache(allocator: PageAllocator) -> RadixCache:
    return RadixCache(allocator, PAGE_SIZE)


def compute(cache: RadixCache, tokens: Int32, *, final: bool = False) -> Lease:
    """Acquire, compute the rest into pages of our own, extend; keep the lease."""
    lease = cache.acquire("n", tokens)
    num_pages = -(-len(tokens) // cache.page_size)
    own = cache.take(num_pages - len(lease.pages))
    pages = np.concatenate([lease.pages, own])
    num_full = len(tokens) // cache.page_size
    duplicates = lease.extend(tokens, pages, final=final).duplicates
    cache._allocator.give(duplicates)
    if not final:
        cache._allocator.give(pages[num_full:])
    return lease


def put(cache: RadixCache, tokens: Int32, *, final: bool = False) -> None:
    compute(cache, tokens, final=final).release()


def depth(cache: RadixCache, tokens: Int32) -> int:
    lease = cache.acquire("n", tokens)
    num = len(list(lease.path()))
    lease.release()
    return num


def state(cache: RadixCache) -> list[object]:
    """Everything the cache knows, for comparing."""
    seen: list[object] = [cache.counters, cache.num_cached, cache.num_evictable, cache.num_leaves]
    nodes: list[Node] = list(cache._tree.roots.values())
    for node in nodes:
        nodes += node.children.values()
        seen.append([getattr(node, name) for name in Node.__slots__ if name != "children"])
        seen.append(node.children.sorted_keys())
    return [repr(entry) for entry in seen]


@given(st.lists(st.lists(st.integers(0, 1), max_size=14), min_size=1, max_size=8))
def test_peek_changes_nothing(sequences: list[list[int]]) -> None:
    cache = RadixCache(PageAllocator(100), 2)
    for sequence in sequences[1:]:
        put(cache, ids(*sequence), final=True)
    before = state(cache)
    for sequence in sequences:
        cache.peek("n", ids(*sequence))
        cache.peek("unknown", ids(*sequence))
    assert state(cache) == before


def test_namespaces_share_nothing(cache: RadixCache) -> None:
    put(cache, upto(12))
    assert cache.peek("n", upto(12)) == 12
    assert cache.peek("other", upto(12)) == 0
    assert cache.acquire("other", upto(12)).num_tokens == 0


def test_a_match_ends_inside_a_page_and_offers_it_as_tail(cache: RadixCache) -> None:
    put(cache, upto(12))
    lease = cache.acquire("n", ids(0, 1, 2, 3, 4, 5, 6, 99, 8))
    assert lease.num_tokens == 4
    assert lease.tail is not None
    assert lease.tail.num_tokens == 3
    whole = cache.acquire("n", upto(12))
    assert whole.pages[1] == lease.tail.page


def test_the_tail_is_the_child_with_the_longest_common_prefix(cache: RadixCache) -> None:
    for last in range(20):
        put(cache, ids(0, 1, 2, 3, 7, last % 3, last, 0))
    lease = cache.acquire("n", ids(0, 1, 2, 3, 7, 2, 11, 5))
    assert lease.tail is not None
    assert lease.tail.num_tokens == 3
    assert cache.acquire("n", ids(0, 1, 2, 3, 7, 2, 11, 0)).pages[1] == lease.tail.page


def test_a_tail_is_locked_by_nobody_and_may_be_what_is_taken_next() -> None:
    cache = RadixCache(PageAllocator(3), PAGE_SIZE)
    put(cache, upto(8))
    lease = cache.acquire("n", ids(0, 1, 2, 3, 4, 99))
    assert lease.tail is not None
    assert cache.num_evictable == 1
    assert cache.take_one() == lease.tail.page
    assert cache.num_evictable == 0


def test_looking_into_a_run_leaves_no_cuts_behind(cache: RadixCache) -> None:
    put(cache, upto(400))
    for n in range(1, 40):
        cache.acquire("n", np.concatenate([upto(0), ids(0, 1), upto(n) + 500])).release()
    assert len(cache._tree.roots["n"].children) == 1
    assert depth(cache, upto(400)) == 1


@pytest.mark.parametrize("final", [False, True])
def test_a_conversation_stays_one_run(cache: RadixCache, final: bool) -> None:
    for turn in range(1, 300):
        put(cache, upto(turn * 7), final=final)
    cache.check()
    assert depth(cache, upto(299 * 7)) == 1
    num_tokens = 299 * 7
    assert cache.num_cached == (-(-num_tokens // PAGE_SIZE) if final else num_tokens // PAGE_SIZE)


def test_turns_that_overlapped_become_one_run_when_next_used(cache: RadixCache) -> None:
    before = compute(cache, upto(8))
    for turn in range(3, 200):
        lease = compute(cache, upto(turn * 4))
        before.release()
        before = lease
    before.release()
    assert depth(cache, upto(199 * 4)) > 0
    assert depth(cache, upto(199 * 4)) == 1
    cache.check()


def test_parked_turns_do_not_pile_up_nodes(cache: RadixCache) -> None:
    parked: Lease | None = None
    for turn in range(1, 100):
        lease = compute(cache, upto(turn * 6), final=True)
        if parked is not None:
            parked.release()
        lease.park(10.0)
        parked = lease
    assert depth(cache, upto(99 * 6)) <= 2


def test_a_partial_page_gives_way_to_a_longer_one(
    cache: RadixCache, allocator: PageAllocator
) -> None:
    for n in (5, 6, 7, 8):
        put(cache, upto(n), final=True)
        assert cache.peek("n", upto(20)) == n
        assert cache.num_cached == 2
    assert cache.counters.superseded_pages == 3
    assert allocator.num_free == allocator.num_usable - 2


def test_a_shorter_partial_page_is_a_duplicate(cache: RadixCache) -> None:
    put(cache, upto(7), final=True)
    lease = cache.acquire("n", upto(4))
    page = cache.take(1)
    extension = lease.extend(upto(6), np.concatenate([lease.pages, page]), final=True)
    assert extension.duplicates.tolist() == page.tolist()
    assert cache.num_cached == 2


def test_two_that_computed_the_same_keep_one_copy(
    cache: RadixCache, allocator: PageAllocator
) -> None:
    first, second = cache.acquire("n", upto(12)), cache.acquire("n", upto(12))
    pages = cache.take(3), cache.take(3)
    assert not len(first.extend(upto(12), pages[0]).duplicates)
    extension = second.extend(upto(12), pages[1])
    assert extension.duplicates.tolist() == pages[1].tolist()
    assert extension.pages.tolist() == pages[0].tolist() == second.pages.tolist()
    allocator.give(extension.duplicates)
    cache.check()


def test_pages_past_the_sequence_stay_the_callers(cache: RadixCache) -> None:
    lease = cache.acquire("n", upto(10))
    pages = cache.take(10)
    extension = lease.extend(upto(10), pages)
    assert extension.pages.tolist() == pages[:2].tolist()
    assert not len(extension.duplicates)
    assert cache.num_cached == 2


def test_a_parked_lease_whose_pages_are_gone_can_still_be_released(cache: RadixCache) -> None:
    for ended in (False, True):
        lease = compute(cache, upto(30), final=True)
        lease.park(100.0)
        assert cache.num_evictable == 8
        cache.clear()
        put(cache, upto(30))
        lease.release(ended=ended)
        lease.release(ended=ended)
        cache.check()
        assert cache.peek("n", upto(30)) == 28
        cache.clear()


def test_an_emptied_cache_hands_out_pages_side_by_side(cache: RadixCache) -> None:
    for first in (100, 200, 300):
        put(cache, upto(30) + first)
    cache.evict(3)
    cache.clear()
    pages = cache._allocator.take(cache._allocator.num_free)
    assert pages.tolist() == list(range(1, len(pages) + 1))


def test_parking_never_blocks_memory(cache: RadixCache) -> None:
    for i in range(400):
        tokens = upto(40) + 1000 * i
        compute(cache, tokens).park(1e9)
    assert len(cache.take(999)) == 999


def test_take_refuses_without_evicting_when_even_that_would_not_do(
    cache: RadixCache, allocator: PageAllocator
) -> None:
    put(cache, upto(400))
    held = compute(cache, upto(40))
    with pytest.raises(OutOfPages, match="990 pages asked for, 899 are free and 90 evictable"):
        cache.take(990)
    assert cache.num_evictable == 90
    assert len(cache.take(989)) == 989
    held.release()


def test_an_unused_namespace_leaves_nothing_behind(cache: RadixCache) -> None:
    for tenant in range(50):
        cache.acquire(str(tenant), upto(9)).release()
    put(cache, upto(9))
    cache.clear()
    assert not cache._tree.roots


def test_counters_count(cache: RadixCache) -> None:
    put(cache, upto(10), final=True)
    cache.acquire("n", upto(12)).release()
    cache.evict(2)
    counters = cache.counters
    assert (counters.acquired, counters.asked_tokens, counters.hit_tokens) == (2, 22, 10)
    assert (counters.inserted_pages, counters.evicted_pages) == (3, 2)


@pytest.mark.parametrize("use", ["released", "parked", "final"])
def test_a_lease_that_is_not_held_cannot_be_extended(cache: RadixCache, use: str) -> None:
    lease = compute(cache, upto(8), final=use == "final")
    if use == "released":
        lease.release()
    elif use == "parked":
        lease.park(1.0)
    with pytest.raises(InvalidArgument, match=f"lease='{use}'"):
        lease.extend(upto(8), cache.take(2))
    if use != "final":
        assert len(lease.pages) == 0
        with pytest.raises(InvalidArgument, match="parked"):
            lease.park(1.0)


def test_arrays_that_do_not_fit_the_lease_are_refused(cache: RadixCache) -> None:
    lease = compute(cache, upto(8))
    with pytest.raises(InvalidArgument, match="covers 8 tokens"):
        lease.extend(upto(7), lease.pages)
    with pytest.raises(InvalidArgument, match="all 3 of the sequence"):
        lease.extend(upto(12), lease.pages)
    with pytest.raises(InvalidArgument, match="all 3 of the sequence"):
        lease.extend(upto(9), lease.pages, final=True)
    with pytest.raises(InvalidArgument, match="page_size"):
        RadixCache(PageAllocator(2), 0)
    cache.check()


def test_what_follows_a_match_is_known_when_others_have_branched_off_behind(
    cache: RadixCache,
) -> None:
    """Their splits move the run's beginning, an eviction takes what was after it."""
    put(cache, upto(40))
    lease = cache.acquire("n", ids(*range(6), 99))
    for at in (30, 21, 13):
        cache.acquire("n", ids(*range(at), 99)).release()
    assert lease.following(3).tolist() == [6, 7, 8]
    cache.evict(7)
    assert lease.following(3).tolist() == [6, 7, 8]
    cache.evict(2)
    assert lease.following(3).tolist() == []


def test_leases_that_share_a_run_name_the_same_node(cache: RadixCache) -> None:
    one, two = compute(cache, upto(12)), compute(cache, np.append(upto(8), upto(8)))
    shared = set(one.path()) & set(two.path())
    assert {(start, end) for _, start, end in shared} == {(0, 8)}
    assert [end for _, _, end in two.path()] == [16, 8]


@given(st.lists(st.lists(st.integers(0, 1), max_size=14), min_size=1, max_size=8))
def test_a_lookup_and_a_lease_know_what_the_cache_knows(sequences: list[list[int]]) -> None:
    """Also after the tree has changed, and of what follows the match."""
    cache = RadixCache(PageAllocator(100), 2)
    prompts = [ids(*sequence) for sequence in sequences]
    lookups = [cache.lookup("n", prompt) for prompt in prompts]
    for prompt in prompts[1:]:
        assert [look.num_tokens for look in lookups] == [cache.peek("n", p) for p in prompts]
        put(cache, prompt, final=True)
    cache.evict(2)
    for prompt, look in zip(prompts, lookups, strict=True):
        assert look.num_tokens == cache.peek("n", prompt)
        for num in (1, 8):
            follows = cache.continuation("n", prompt, num)
            lease = cache.acquire_found(look)
            assert lease.following(num).tolist() == follows.tolist()
            lease.release()
    cache.check()


def test_a_lookup_outlives_its_namespace(cache: RadixCache) -> None:
    """One that is empty goes; what comes under its name afterwards is another tree."""
    put(cache, upto(8))
    look = cache.lookup("n", upto(8) + 100)
    assert look.num_tokens == 0
    cache.clear()
    put(cache, upto(8) + 100)
    assert look.num_tokens == 8


@given(st.lists(st.lists(st.integers(0, 1), max_size=14), min_size=1, max_size=8))
def test_a_use_finds_the_pages_of_a_lease_and_leaves_the_tree_as_it_is(
    sequences: list[list[int]],
) -> None:
    cache = RadixCache(PageAllocator(100), 2)
    for sequence in sequences[1:]:
        put(cache, ids(*sequence), final=True)
    for sequence in sequences:
        nodes = [node.key for node in below(cache.tree.root("n"))]
        pages, num_pages = cache.use(cache.lookup("n", ids(*sequence)))
        assert len(pages) == num_pages
        for first in range(num_pages + 2):
            rest, total = cache.use(cache.lookup("n", ids(*sequence)), first)
            assert (rest.tolist(), total) == (pages[first:].tolist(), num_pages)
        assert [node.key for node in below(cache.tree.root("n"))] == nodes
        lease = cache.acquire("n", ids(*sequence))
        assert pages.tolist() == lease.pages.tolist()
        lease.release()
        cache.check()


def test_a_use_counts_for_the_order_of_eviction(allocator: PageAllocator) -> None:
    now = 0.0
    cache = RadixCache(allocator, PAGE_SIZE, clock=lambda: now)
    for first in (100, 200):
        now += 1
        put(cache, first + upto(8))
    now += 1
    assert cache.use(cache.lookup("n", 100 + upto(8)))[1] == 2
    cache.evict(2)
    assert cache.peek("n", 100 + upto(8)) == 8
    assert cache.peek("n", 200 + upto(8)) == 0
