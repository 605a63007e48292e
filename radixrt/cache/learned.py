"""Eviction by expected saving."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from typing import Final

from radixrt.cache.ages import age_bucket
from radixrt.cache.eviction import Policy
from radixrt.cache.history import PageHistory
from radixrt.cache.node import Node, Place
from radixrt.cache.reuse import ENDED, HELD, PLAIN, ReuseModel, group_of
from radixrt.cache.sorted_dict import SortedDict

_KINDS: Final = 8
"""Queues of a group: with or without a copy below, times the priority of a lease (0 to 3)."""

_CHOICE_S: Final = 0.05
"""How long a queue that was found to have the least worth is taken from without looking again."""

_COPY_COST: Final = 0.2
"""What bringing a page back from the tier below costs, as a share of computing it, by default."""

_PRIORITY_FACTOR: Final = 4.0
"""A step of priority makes pages worth so many times as much."""


class LearnedOrder:
    """The unlocked leaves, those first whose loss costs least.

    Leaves wait in queues by group (state and uses of their last page, see ``ReuseModel``), by
    whether the tier below has a copy, and by the priority of an explicit lease; within a queue the
    least recently used is first. The victim is the head with the least ``worth x cost``: worth is
    the group's at the head's age, cost what a page costs to bring back, as a share of computing it
    (``copy_cost`` with a copy below, else 1). So choosing looks at one leaf a queue, at most a few
    dozen, however many leaves there are. When the shadow comparison says that plain LRU would do
    better, the victim is the least recently used of the heads, which is LRU, until it says no more.

    A lease held for a time (``held_until``) loses its rank then; what was predicted of an idle
    branch decays as the ages of its group do. Hints that mean nothing make groups that do not
    differ, and so change nothing.
    """

    uses_bias = False

    def __init__(self, reuse: ReuseModel, clock: Callable[[], float] = time.monotonic) -> None:
        self.copy_cost: Callable[[], float] = lambda: _COPY_COST
        self._copy_cost = _COPY_COST
        self._reuse = reuse
        self._clock = clock
        self._queues: dict[int, SortedDict[Place, Node]] = {}
        self._expiries: list[tuple[float, int, Node]] = []
        self._len = 0
        self._chosen: SortedDict[Place, Node] | None = None
        self._chosen_bucket = 0
        self._chosen_until = 0.0
        self._least = 0.0

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
        if self._chosen is not None and queue.first() is node:
            chosen_at = self._chosen_until - _CHOICE_S
            if self._worth(node.place[0], chosen_at - node.used) <= self._least:
                self._chosen = None
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
        chosen = self._chosen
        if chosen and now <= self._chosen_until:
            # No head of less worth has come since, so it is still the queue to take from.
            head = chosen.first()
            if head is not None and age_bucket(now - head.used) == self._chosen_bucket:
                return head
        if self._reuse.refresh(now):
            self._copy_cost = self.copy_cost()
        # Heads are compared by their places: the nodes themselves are seldom in the caches.
        prefers_lru = self._reuse.shadow.prefers_lru
        least = (math.inf, math.inf)
        for number, queue in self._queues.items():
            place = queue.first_key()
            if place is None:
                continue
            used = place[1]
            rank = (0.0 if prefers_lru else self._worth(number, now - used), used)
            if rank < least:
                least, chosen = rank, queue
        assert chosen is not None
        self._chosen = None if prefers_lru else chosen
        self._least, used = least
        self._chosen_bucket = age_bucket(now - used)
        self._chosen_until = now + _CHOICE_S
        return chosen.first()

    def num_alike(self, node: Node) -> int:
        """Return how many pages at the end were used about as often as the last one."""
        uses = node.uses
        last = uses[-1]
        return len(uses) - len(uses.rstrip(bytes((last,))))

    def _worth(self, number: int, age_s: float) -> float:
        """Return what losing a page of queue ``number`` costs, at an age."""
        worth = self._reuse.worth[number // _KINDS][age_bucket(age_s)]
        if number % 2:
            worth *= self._copy_cost
        if number % _KINDS > 1:
            worth *= _PRIORITY_FACTOR ** (number % _KINDS // 2)
        return worth

    def _expire(self, now: float) -> None:
        expiries = self._expiries
        while expiries and expiries[0][0] <= now:
            until, _, node = heapq.heappop(expiries)
            if node.held_until == until:
                node.held_until = 0.0
                if node.place is not None:
                    self.discard(node)
                    self.add(node)


def learned_policy(num_pages: int, clock: Callable[[], float] = time.monotonic) -> Policy:
    """Return the policy of eviction by expected saving for a pool of ``num_pages``."""
    reuse = ReuseModel(num_pages, now=clock())
    return Policy(LearnedOrder(reuse, clock), PageHistory.for_pages(num_pages), reuse)
