"""Eviction by expected saving."""

from __future__ import annotations

import heapq
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from radixrt.cache.ages import EDGE_LIST
from radixrt.cache.eviction import Policy
from radixrt.cache.history import PageHistory
from radixrt.cache.node import Node, Place
from radixrt.cache.reuse import ENDED, HELD, PLAIN, ReuseModel, group_of
from radixrt.cache.sorted_dict import SortedDict

_KINDS: Final = 8
"""Queues of a group: with or without a copy below, times the priority of a lease (0 to 3)."""

_RANKED_S: Final = 0.05
"""How long a head keeps the rank that it was given, though it ages."""

_MAX_RANKED: Final = 1024
"""Ranks that are kept at most: when nothing is evicted nobody asks for them."""

_COPY_COST: Final = 0.2
"""What bringing a page back from the tier below costs, as a share of computing it, by default."""

_PRIORITY_FACTOR: Final = 4.0
"""A step of priority makes pages worth so many times as much."""


Ranked = tuple[float, float, Place]
"""What losing a head costs, when it was used last, its place."""


class LearnedOrder:
    """The unlocked leaves, those first whose loss costs least.

    Leaves wait in queues by group (state and uses of their last page, see ``ReuseModel``), by
    whether the tier below has a copy, and by the priority of an explicit lease; within a queue the
    least recently used is first. The victim is the head with the least ``worth x cost``: worth is
    the group's at the head's age, cost what a page costs to bring back, as a share of computing it
    (``copy_cost`` with a copy below, else 1). The heads, at most a few dozen however many leaves
    there are, are ranked together every ``_RANKED_S``; between that a queue's next head, or a new
    one, finds its place among them. When the shadow comparison says that plain LRU would do better,
    the victim is the least recently used of the heads, which is LRU, until it says no more.

    A lease held for a time (``held_until``) loses its rank then; what was predicted of an idle
    branch decays as the ages of its group do. Hints that mean nothing make groups that do not
    differ, and so change nothing.
    """

    uses_bias = False

    def __init__(self, reuse: ReuseModel, clock: Callable[[], float] = time.monotonic) -> None:
        self.copy_cost: Callable[[], float] = lambda: _COPY_COST
        self._reuse = reuse
        self._worth = reuse.worth
        self._factors = _factors(_COPY_COST)
        self._clock = clock
        self._queues: dict[int, SortedDict[Place, Node]] = {}
        self._expiries: list[tuple[float, int, Node]] = []
        self._len = 0
        self._ranked: list[Ranked] = []  # a heap; of a queue that changed also heads it had
        self._ranked_until = 0.0
        self._is_lru = False

    def __len__(self) -> int:
        return self._len

    def place_of(self, node: Node) -> Place:
        """Return (queue, last use, age)."""
        if node.held_until > node.used:
            state, priority = HELD, node.priority
        elif node.is_ended:
            state, priority = ENDED, 0
        else:
            state, priority = node.state if node.parks else PLAIN, 0
        is_backed = node.backed > 0 and node.backed == node.num_pages
        group = group_of(state, node.uses[-1])
        return (group * _KINDS + 2 * priority + is_backed, node.used, node.serial)

    def add(self, node: Node) -> None:
        """Put an unlocked leaf in."""
        node.place = self.place_of(node)
        queue = self._queues.get(node.place[0])
        if queue is None:
            queue = self._queues[node.place[0]] = SortedDict()
        queue[node.place] = node
        self._len += 1
        if self._ranked and queue.first_key() is node.place:
            self._rank(node.place, self._ranked_until - _RANKED_S)
            if len(self._ranked) > _MAX_RANKED:
                self._ranked.clear()
        if node.held_until > node.used:
            heapq.heappush(self._expiries, (node.held_until, node.serial, node))

    def discard(self, node: Node) -> None:
        """Take the node out, if it is in."""
        if node.place is not None:
            del self._queues[node.place[0]][node.place]
            node.place = None
            self._len -= 1

    def first(self) -> Node | None:
        """Return the next victim."""
        if not self._len:
            return None
        now = self._clock()
        if self._expiries and self._expiries[0][0] <= now:
            self._expire(now)
        ranked = self._ranked
        if now > self._ranked_until or self._is_lru != self._reuse.shadow.prefers_lru or not ranked:
            self._rank_all(now)
        while True:
            # Places are compared: the nodes themselves are seldom in the caches.
            place = ranked[0][2]
            queue = self._queues[place[0]]
            head = queue.first_key()
            if head is place:
                return queue.first()
            heapq.heappop(ranked)
            if head is not None:
                self._rank(head, now)

    def num_alike(self, node: Node) -> int:
        """Return how many pages at the end were used about as often as the last one."""
        uses = node.uses
        last = uses[-1]
        return len(uses) - len(uses.rstrip(bytes((last,))))

    def _rank_all(self, now: float) -> None:
        """Rank the heads of all queues."""
        if self._worth is not self._reuse.worth:
            self._worth = self._reuse.worth
            self._factors = _factors(self.copy_cost())
        self._is_lru = self._reuse.shadow.prefers_lru
        self._ranked_until = now + _RANKED_S
        self._ranked.clear()
        for queue in self._queues.values():
            head = queue.first_key()
            if head is not None:
                self._rank(head, now)

    def _rank(self, head: Place, now: float) -> None:
        """Put a head among the others by what losing it costs; the least recently used comes first
        of those that cost the same."""
        heapq.heappush(self._ranked, (self._cost(head, now), head[1], head))

    def _cost(self, head: Place, now: float) -> float:
        """Return what losing a head costs; nothing while the order is LRU."""
        if self._is_lru:
            return 0.0
        number, used, _ = head
        age_s = now - used
        bucket = bisect_right(EDGE_LIST, age_s) - 1 if age_s > 0.0 else 0
        return self._worth[number // _KINDS][bucket] * self._factors[number % _KINDS]

    def _expire(self, now: float) -> None:
        expiries = self._expiries
        while expiries and expiries[0][0] <= now:
            until, _, node = heapq.heappop(expiries)
            if node.held_until == until:
                node.held_until = 0.0
                if node.place is not None:
                    self.discard(node)
                    self.add(node)


def _factors(copy_cost: float) -> list[float]:
    """Return what the worth of a group is multiplied by, for each kind of queue."""
    return [
        (copy_cost if kind % 2 else 1.0) * _PRIORITY_FACTOR ** (kind // 2) for kind in range(_KINDS)
    ]


def learned_policy(num_pages: int, clock: Callable[[], float] = time.monotonic) -> Policy:
    """Return the policy of eviction by expected saving for a pool of ``num_pages``."""
    reuse = ReuseModel(num_pages, now=clock())
    return Policy(LearnedOrder(reuse, clock), PageHistory.for_pages(num_pages), reuse)
