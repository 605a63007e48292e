"""The cache against a naive model: a set of every prefix that is cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from radixrt.cache.learned import learned_policy
from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import Lease, Lookup, RadixCache
from radixrt.cache.shortcuts import Shortcuts
from radixrt.errors import OutOfPages

Int32 = NDArray[np.int32]
Prefix = tuple[int, ...]

tokens = st.lists(st.integers(0, 2), max_size=24).map(tuple)
picks = st.integers(0, 999_999)
T = TypeVar("T")


def choose(options: Sequence[T], pick: int) -> T:
    return options[pick % len(options)]


def ids(sequence: Prefix) -> Int32:
    return np.array(sequence, dtype=np.int32)


@dataclass
class Call:
    """A running request: what it has computed, and which pages behind its lease are its own."""

    namespace: str
    tokens: Prefix
    lease: Lease
    own: Int32
    contents: dict[int, Prefix] = field(default_factory=dict)


class CacheMachine(RuleBasedStateMachine):
    """Requests that come, compute, fork, park, end and are retracted, in any order.

    ``self.written`` says for each page which prefix of which namespace its K and V were computed
    for; the cache is right when every page it hands out was written for the tokens it stands for.
    """

    page_size = 4
    num_pages = 40
    learns = False

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.allocator = PageAllocator(self.num_pages)
        policy = learned_policy(self.num_pages, lambda: self.now) if self.learns else None
        self.cache = RadixCache(
            self.allocator, self.page_size, clock=lambda: self.now, policy=policy
        )
        # Every walk leaves a shortcut, for all later ones to go wrong by.
        tree = self.cache.tree
        tree.search.shortcuts = Shortcuts(tree.page_bytes, min_nodes=1)
        self.written: dict[int, tuple[str, Prefix]] = {}
        self.calls: list[Call] = []
        self.parked: list[Lease] = []
        self.known: list[Prefix] = [()]
        self.lookups: list[tuple[str, Prefix, Lookup]] = []

    def private(self) -> int:
        return sum(len(call.own) for call in self.calls)

    # -- what a request does

    @precondition(lambda self: len(self.calls) < 5)
    @rule(
        base=picks,
        cut=picks,
        more=tokens,
        namespace=st.sampled_from("aab"),
        is_first=st.booleans(),
    )
    def acquire(self, base: int, cut: int, more: Prefix, namespace: str, is_first: bool) -> None:
        known = choose(self.known, base)
        sequence = (known[: cut % (len(known) + 1)] + more)[:40]
        expected = self.cache.peek(namespace, ids(sequence))
        lease = self.cache.acquire(namespace, ids(sequence))
        found = lease.num_tokens + (lease.tail.num_tokens if lease.tail else 0)
        assert found == expected, "acquire found what peek did not"
        assert found == self.longest_match(namespace, sequence), "not the longest match"
        self.assert_written(namespace, sequence, lease)
        lease.note_use(is_first=is_first)
        call = Call(namespace, sequence[: lease.num_tokens], lease, ids(()))
        self.calls.append(call)
        tail = lease.tail
        if tail is not None:
            assert 0 < tail.num_tokens < self.page_size
            assert self.written[tail.page][0] == namespace
            stored = self.written[tail.page][1]
            assert stored[: lease.num_tokens + tail.num_tokens] == sequence[:found]
            self.grow(call, sequence[lease.num_tokens : found])

    @rule(base=picks, cut=picks, more=tokens, namespace=st.sampled_from("aab"))
    def look_up(self, base: int, cut: int, more: Prefix, namespace: str) -> None:
        known = choose(self.known, base)
        sequence = known[: cut % (len(known) + 1)] + more
        look = self.cache.lookup(namespace, ids(sequence))
        self.lookups = [*self.lookups[-5:], (namespace, sequence, look)]

    @precondition(lambda self: self.calls)
    @rule(pick=picks, more=tokens)
    def compute(self, pick: int, more: Prefix) -> None:
        self.grow(choose(self.calls, pick), more)

    def grow(self, call: Call, more: Prefix) -> bool:
        """Compute ``more`` tokens into private pages; False when there is no memory for them."""
        sequence = call.tokens + more
        missing = -(-len(sequence) // self.page_size) - len(call.lease.pages) - len(call.own)
        can = self.allocator.num_free + self.cache.num_evictable >= missing
        try:
            pages = self.cache.take(missing)
        except OutOfPages:
            assert not can, "refused although enough was evictable"
            return False
        assert can
        call.own = np.concatenate([call.own, pages])
        call.tokens = sequence
        for i, page in enumerate(call.own.tolist(), len(call.lease.pages)):
            self.written[page] = call.namespace, sequence[: (i + 1) * self.page_size]
        self.known.append(sequence)
        return True

    @precondition(lambda self: self.calls)
    @rule(pick=picks, final=st.booleans(), ending=st.sampled_from(["go on", "end", "park"]))
    def extend(self, pick: int, final: bool, ending: str) -> None:
        call = choose(self.calls, pick)
        lease, before = call.lease, len(call.lease.pages)
        pages = np.concatenate([lease.pages, call.own])
        extension = lease.extend(ids(call.tokens), pages, final=final)
        num_full = len(call.tokens) // self.page_size
        assert lease.num_tokens == num_full * self.page_size
        assert np.array_equal(extension.pages, lease.pages)
        assert len(lease.pages) == num_full
        assert self.cache.peek(call.namespace, ids(call.tokens)) >= (
            len(call.tokens) if final else lease.num_tokens
        )
        self.assert_written(call.namespace, call.tokens, lease)
        assert set(extension.duplicates.tolist()) <= set(call.own.tolist())
        self.allocator.give(extension.duplicates)
        call.own = call.own[len(call.own) :] if final else call.own[num_full - before :]
        if final:
            self.leave(call, "end" if ending == "go on" else ending)
        elif ending == "park":
            self.leave(call, "park")

    @precondition(lambda self: self.calls)
    @rule(pick=picks, ending=st.sampled_from(["end", "release", "park"]))
    def retract(self, pick: int, ending: str) -> None:
        self.leave(choose(self.calls, pick), ending)

    def leave(self, call: Call, ending: str) -> None:
        self.allocator.give(call.own)
        self.calls.remove(call)
        if ending == "park":
            call.lease.park(5.0, pause_s=choose([None, 1.0, 60.0], len(self.parked)))
            self.parked.append(call.lease)
            return
        call.lease.release(ended=ending == "end")
        call.lease.release()

    @precondition(lambda self: self.parked)
    @rule(pick=picks, ended=st.booleans())
    def release_parked(self, pick: int, ended: bool) -> None:
        lease = choose(self.parked, pick)
        self.parked.remove(lease)
        lease.release(ended=ended)

    @precondition(lambda self: self.parked)
    @rule(pick=picks, ttl_s=st.sampled_from([0.0, 5.0, 50.0]), priority=st.integers(0, 3))
    def hold(self, pick: int, ttl_s: float, priority: int) -> None:
        choose(self.parked, pick).hold(ttl_s, priority)

    # -- what happens to the cache

    @rule(num_pages=st.integers(0, 12))
    def evict(self, num_pages: int) -> None:
        evictable, free = self.cache.num_evictable, self.allocator.num_free
        given = self.cache.evict(num_pages)
        assert given == min(num_pages, evictable)
        assert self.allocator.num_free == free + given

    @rule()
    def clear(self) -> None:
        assert self.cache.clear() >= 0
        assert self.cache.num_evictable == 0

    @rule(seconds=st.sampled_from([0.0, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    # -- what always holds

    def longest_match(self, namespace: str, sequence: Prefix) -> int:
        """Longest prefix of ``sequence`` that is a prefix of what some cached page stands for."""
        prefixes = set()
        for owner, prefix in self.cached():
            if owner == namespace:
                prefixes |= {prefix[:i] for i in range(len(prefix) + 1)}
        return max(i for i in range(len(sequence) + 1) if i == 0 or sequence[:i] in prefixes)

    def cached(self) -> list[tuple[str, Prefix]]:
        private = {page for call in self.calls for page in call.own.tolist()}
        every = np.arange(1, self.num_pages, dtype=np.int32)
        used = every[~self.allocator.is_free(every)].tolist()
        return [self.written[page] for page in used if page not in private]

    def assert_written(self, namespace: str, sequence: Prefix, lease: Lease) -> None:
        for i, page in enumerate(lease.pages.tolist()):
            assert self.written[page] == (namespace, sequence[: (i + 1) * self.page_size])

    @invariant()
    def everything_holds(self) -> None:
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        cache.check()
        for namespace, sequence, look in self.lookups:
            now = cache.lookup(namespace, ids(sequence))
            assert look.match == now.match, "a match that changed counts as current"
        used = self.allocator.num_free + cache.num_cached + self.private()
        assert used == self.allocator.num_usable, "a page was lost"
        for call in self.calls:
            self.assert_written(call.namespace, call.tokens, call.lease)
            path = list(call.lease.path())[::-1]
            ends = [0, *(end for _, _, end in path)]
            assert [start for _, start, _ in path] == ends[:-1]
            assert ends[-1] == call.lease.num_tokens
        leases = [call.lease for call in self.calls]
        locked = {page for lease in leases for page in lease.pages.tolist()}
        assert cache.num_evictable == cache.num_cached - len(locked), "a lock holds too much"

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        for call in list(self.calls):
            self.leave(call, "release")
        assert self.cache.num_evictable == self.cache.num_cached, "something stayed locked"
        for lease in self.parked:
            lease.release()
        self.cache.clear()
        self.cache.check()
        assert self.allocator.num_free == self.allocator.num_usable, "a page was lost"


@pytest.mark.parametrize("learns", [False, True], ids=["recency", "learned"])
@pytest.mark.parametrize("page_size", [1, 2, 4, 16])
def test_any_use_keeps_the_invariants_and_finds_the_longest_match(
    page_size: int, learns: bool
) -> None:
    class Machine(CacheMachine):
        pass

    Machine.page_size = page_size
    Machine.learns = learns
    Machine.num_pages = max(8, 96 // page_size)
    Machine.TestCase.settings = settings(
        max_examples=40,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    Machine.TestCase("runTest").runTest()


@pytest.mark.parametrize("learns", [False, True], ids=["recency", "learned"])
@pytest.mark.parametrize("page_size", [1, 2, 4, 16])
def test_a_long_random_run_keeps_the_invariants(page_size: int, learns: bool) -> None:
    """The same rules without hypothesis, whose examples stay too short to fill the memory."""
    random = Random(page_size)
    machine = CacheMachine()
    machine.page_size = page_size
    machine.learns = learns
    machine.num_pages = max(10, 200 // page_size)
    machine.start()

    def pick() -> int:
        return random.randrange(1_000_000)

    def more() -> Prefix:
        return tuple(random.randrange(2) for _ in range(random.choice([0, 1, 3, 2 * page_size])))

    for _ in range(2500):
        action = random.choice("aaaccceeerphvwl")
        ending = random.choice(["end", "release", "park"])
        if action == "a" and len(machine.calls) < 5:
            machine.acquire(pick(), pick(), more(), random.choice("aab"), random.random() < 0.5)
        elif action == "c" and machine.calls:
            machine.compute(pick(), more())
        elif action == "e" and machine.calls:
            final = random.random() < 0.4
            machine.extend(pick(), final, random.choice(["go on", "go on", "end", "park"]))
        elif action == "r" and machine.calls:
            machine.retract(pick(), ending)
        elif action == "p" and machine.parked:
            machine.release_parked(pick(), random.random() < 0.5)
        elif action == "h" and machine.parked:
            machine.hold(pick(), random.choice([0.0, 5.0, 50.0]), random.randrange(4))
        elif action == "v":
            machine.evict(random.choice([0, 1, 1, 2, 3, 50]))
        elif action == "l":
            machine.look_up(pick(), pick(), more(), random.choice("aab"))
        elif action == "w":
            machine.wait(random.choice([0.0, 1.0, 10.0]))
        machine.known = machine.known[-8:]
        machine.everything_holds()
    machine.teardown()
