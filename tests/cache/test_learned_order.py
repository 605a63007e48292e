"""Eviction by expected saving, as stories: what was done, and what is given up first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from radixrt.cache.learned import LearnedOrder, learned_policy
from radixrt.cache.lease import Lease
from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import RadixCache


class Story:
    """Pages of one token; a letter is a page. Every ``use`` is a request for a whole text."""

    def __init__(self, num_pages: int = 200) -> None:
        self.now = 0.0
        self.allocator = PageAllocator(num_pages + 1)
        self.cache = RadixCache(
            self.allocator,
            1,
            clock=lambda: self.now,
            policy=learned_policy(num_pages, lambda: self.now),
        )
        self.letters: dict[int, str] = {}

    def compute(self, text: str) -> Lease:
        tokens = np.array([ord(letter) for letter in text], np.int32)
        lease = self.cache.acquire("story", tokens)
        lease.note_use()
        new = self.cache.take(len(text) - len(lease.pages))
        pages = lease.extend(tokens, np.concatenate([lease.pages, new])).pages
        self.letters.update(zip(pages.tolist(), text, strict=True))
        return lease

    def use(self, *texts: str, after_s: float = 1.0) -> None:
        for text in texts:
            self.now += after_s
            self.compute(text).release()

    def evicted(self) -> str:
        order = ""
        while self.cache.num_evictable:
            before = self.cached()
            assert self.cache.evict(1) == 1
            (gone,) = before - self.cached()
            order += self.letters[gone]
            self.cache.check()
        return order

    def cached(self) -> set[int]:
        pages = np.array(list(self.letters), np.int32)
        return set(pages[~self.allocator.is_free(pages)].tolist())


def test_without_observations_the_order_is_lru_from_the_ends() -> None:
    story = Story()
    story.use("abc", "xyz", "abd")
    assert story.evicted() == "czyxdba"


def test_an_ended_program_goes_first_up_to_what_others_have_used() -> None:
    story = Story()
    story.use("abc", "xyz")
    story.now += 1
    story.compute("abdef").release(ended=True)
    assert story.evicted()[:3] == "fed"


def test_an_idle_branch_goes_after_those_of_nobody() -> None:
    story = Story()
    story.compute("abc").park(0.0, pause_s=5.0)
    story.use("xyz")
    assert story.evicted() == "zyxcba"


def test_a_lease_is_kept_while_it_lasts_and_not_longer() -> None:
    def evict_after(seconds: float) -> str:
        story = Story()
        lease = story.compute("ab")
        lease.park(0.0)
        lease.hold(60.0, 2)
        story.use("xy", after_s=30.0)
        lease.release()
        story.now += seconds
        return story.evicted()

    assert evict_after(0.0) == "yxba"
    assert evict_after(31.0) == "bayx"


def test_of_two_leases_the_one_of_higher_priority_stays_longer() -> None:
    story = Story()
    for text, priority in (("ab", 3), ("cd", 1), ("ef", 2)):
        lease = story.compute(text)
        lease.park(0.0)
        lease.hold(60.0, priority)
    assert story.evicted() == "dcfeba"


def test_a_lease_that_is_taken_back_is_none() -> None:
    story = Story()
    lease = story.compute("ab")
    lease.park(0.0)
    lease.hold(60.0, 3)
    lease.hold(0.0, 0)
    lease.release()
    story.use("xy")
    assert story.evicted() == "bayx"


def test_what_the_tier_below_has_goes_before_what_only_computing_brings_back() -> None:
    story = Story()
    story.use("ab", "cd")
    lease = story.compute("cd")
    lease.note_backed(2)
    lease.release()
    story.now += 1
    assert story.evicted() == "dcba"


def learn(story: Story, rounds: int, between: Callable[[int], None]) -> None:
    """Let pages that were used twice come again every 10 s, and others never."""
    for i in range(rounds):
        story.use("pqrstu", after_s=10.0)
        between(i)


def test_pages_that_were_used_again_outlive_newer_ones_that_nobody_comes_back_for() -> None:
    story = Story()
    learn(story, 12, lambda i: story.use("".join(chr(1000 + 8 * i + j) for j in range(8))))
    story.use("AB", after_s=1.0)
    order = story.evicted()
    assert order.index("B") < order.index("p"), "used 12 times, but evicted before a new page"
    story = Story()
    story.use("pqrstu", "AB")
    assert story.evicted() == "utsrqpBA", "without that knowledge the older one goes first"


def test_uses_are_remembered_over_an_eviction() -> None:
    story = Story()
    learn(story, 12, lambda i: story.use("".join(chr(1000 + 8 * i + j) for j in range(8))))
    story.cache.clear()
    story.use("pqrstu", "AB")
    assert story.evicted().startswith("BA")


def test_a_hint_that_means_nothing_is_forgotten() -> None:
    """Programs that say they end, and are continued all the same."""
    story = Story()
    for i in range(40):
        story.now += 10.0
        story.compute("abc").release(ended=True)
        story.use("".join(chr(1000 + 8 * i + j) for j in range(8)))
    story.now += 25.0
    story.compute("abc").release(ended=True)
    story.use("XY")
    order = story.evicted()
    assert order.index("Y") < order.index("c")


@pytest.mark.parametrize("num_pages", [1, 5, 50])
def test_taking_pages_never_fails_while_enough_is_evictable(num_pages: int) -> None:
    story = Story(num_pages)
    for i in range(200):
        text = "".join(chr(65 + (i * 7 + j * j) % 30) for j in range(1 + i % min(num_pages, 9)))
        lease = story.compute(text)
        if i % 3:
            lease.park(0.0, pause_s=float(i % 50))
            lease.hold(1000.0, 3)
        else:
            lease.release(ended=bool(i % 2))
        story.now += i % 5
    assert len(story.cache.take(num_pages)) == num_pages


def test_what_an_earlier_lease_knew_spares_hashing_and_changes_nothing() -> None:
    story = Story()
    first = story.compute("abcdefgh")
    first.park(0.0)
    for text, num_common in (("abcdefghijklmnop", 8), ("abcdxy", 4), ("abc", 3), ("abcdefgh", 8)):
        tokens = np.array([ord(letter) for letter in text], np.int32)
        fresh, told = story.cache.acquire("story", tokens), story.cache.acquire("story", tokens)
        fresh.note_use()
        told.note_use(known=first.known_of(num_common))
        assert told.page_keys.tolist() == fresh.page_keys.tolist()
        assert told._watched == fresh._watched
        fresh.release()
        told.release()


@pytest.mark.parametrize("seed", range(5))
def test_the_victim_is_the_head_whose_loss_costs_least(seed: int) -> None:
    story, rng = Story(400), np.random.default_rng(seed)
    order = story.cache.tree.order
    assert isinstance(order, LearnedOrder)
    for i in range(300):
        text = "".join(chr(65 + token) for token in rng.integers(0, 4, rng.integers(1, 9)))
        lease = story.compute(text)
        if i % 3:
            lease.release(ended=i % 3 == 1)
        else:
            lease.park(0.0, pause_s=float(rng.integers(1, 100)))
            lease.hold(float(rng.integers(0, 50)), int(rng.integers(0, 4)))
        story.now += 0.1 + float(rng.exponential(2.0))  # they are ranked anew
        for _ in range(i % 4):
            victim = order.first()
            assert victim is not None
            heads = [head for queue in order._queues.values() if (head := queue.first_key())]
            assert victim.place in heads
            least = min((order._cost(head, story.now), head[1]) for head in heads)
            assert (order._cost(victim.place, story.now), victim.used) == least
            story.cache.evict(1)
