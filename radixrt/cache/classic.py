"""Eviction orders to compare with: LFU, GDSF, and Belady's, which knows the future."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable

from radixrt.cache.node import TOKEN_BYTES, Node, Place
from radixrt.cache.sorted_dict import SortedDict


class _SortedOrder(ABC):
    """The unlocked leaves, sorted by a place that their state gives them."""

    uses_bias = False

    def __init__(self) -> None:
        self._leaves: SortedDict[Place, Node] = SortedDict()

    def __len__(self) -> int:
        return len(self._leaves)

    @abstractmethod
    def place_of(self, node: Node) -> Place:
        """Return the leaf's key in the order, the next victim's first."""

    def add(self, node: Node) -> None:
        node.place = self.place_of(node)
        self._leaves[node.place] = node

    def discard(self, node: Node) -> None:
        if node.place is not None:
            del self._leaves[node.place]
            node.place = None

    def first(self) -> Node | None:
        return self._leaves.first()

    def num_alike(self, node: Node) -> int:
        last = node.uses[-1]
        return len(node.uses) - len(node.uses.rstrip(bytes((last,))))


class FrequencyOrder(_SortedOrder):
    """LFU: the page used least often goes first, among equals the one used least recently."""

    def place_of(self, node: Node) -> Place:
        return node.uses[-1], node.used, node.serial


class GreedyDualOrder(_SortedOrder):
    """GDSF (Cherkasova, 1998): uses x cost / size, plus what the last victim had when the page was
    used last. Pages are of one size and cost here."""

    def __init__(self) -> None:
        super().__init__()
        self._times = [float("-inf")]
        self._floors = [0.0]

    def place_of(self, node: Node) -> Place:
        floor = self._floors[bisect_right(self._times, node.used) - 1]
        return 0, floor + node.uses[-1], node.serial

    def first(self) -> Node | None:
        node = super().first()
        if node is not None and node.place is not None and node.place[1] > self._floors[-1]:
            # Whatever is used from now on starts from here.
            self._floors.append(node.place[1])
            self._times.append(self._clock())
        return node

    def told(self, clock: Callable[[], float]) -> GreedyDualOrder:
        self._clock = clock
        return self


class OracleOrder(_SortedOrder):
    """Belady's: the page that is used again last goes first. For pages of one token, which names
    the block; ``next_use`` says when it comes again."""

    def __init__(self) -> None:
        super().__init__()
        self.next_use: dict[int, float] = {}

    def place_of(self, node: Node) -> Place:
        return 0, -self._next(node.key, len(node.key)), node.serial

    def num_alike(self, node: Node) -> int:
        key = node.key
        at = len(key)
        last = self._next(key, at)
        while at > TOKEN_BYTES and self._next(key, at - TOKEN_BYTES) == last:
            at -= TOKEN_BYTES
        return (len(key) - at) // TOKEN_BYTES + 1

    def _next(self, key: bytearray, end: int) -> float:
        block = int.from_bytes(key[end - TOKEN_BYTES : end], "big")
        return self.next_use.get(block, float("inf"))
