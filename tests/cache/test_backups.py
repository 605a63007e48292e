"""Copies to the host are taken in hand a few at a time, between steps that must not wait."""

import numpy as np
from hicache_machine import PAGE_SIZE, LateMover
from hypothesis import given
from hypothesis import strategies as st

from radixrt.cache.hicache import HiCache
from radixrt.cache.host import MIN_A_POLL, HostTier
from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import RadixCache

NUM_PAGES = 200


@given(num=st.integers(1, NUM_PAGES - 1))
def test_one_poll_takes_few_sequences_in_hand_and_later_ones_all_of_them(num: int) -> None:
    device, on_host = list(range(NUM_PAGES)), [-1] * NUM_PAGES
    allocator = PageAllocator(NUM_PAGES)
    cache = RadixCache(allocator, PAGE_SIZE)
    mover = LateMover(device, on_host)
    host = HostTier(np.zeros((NUM_PAGES, 8), np.uint8), PAGE_SIZE, mover)
    tiers = HiCache(cache, host)
    sequences = [np.full(PAGE_SIZE, index, np.int32) for index in range(num)]
    for tokens in sequences:
        lease = cache.acquire("", tokens)
        lease.extend(tokens, allocator.take(1))
        lease.release()
        tiers.backup("", tokens)

    polls = 0
    while tiers.is_busy:
        moving, done = host.num_storing, host.stats().written
        tiers.poll()
        ended = host.stats().written - done
        started = host.num_storing - moving + ended
        assert max(started, ended) <= max(MIN_A_POLL, num // 32)
        for move in mover.open:
            move.finish()
        polls += 1
        assert polls < 10 * num + 10
    assert all(host.cache.peek("", tokens) == PAGE_SIZE for tokens in sequences)
