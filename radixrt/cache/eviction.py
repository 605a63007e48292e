"""In which order cached runs are given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from radixrt.cache.node import Node, Place
from radixrt.cache.sorted_dict import SortedDict

if TYPE_CHECKING:
    from radixrt.cache.history import PageHistory
    from radixrt.cache.reuse import ReuseModel


class EvictionOrder(Protocol):
    """The unlocked leaves, the next victim first. No operation looks at all of them."""

    uses_bias: bool
    """Whether a parked lease counts as used later than it was."""

    def __len__(self) -> int: ...

    def place_of(self, node: Node) -> Place:
        """Return the place that the node's state gives it. Changes nothing."""
        ...

    def add(self, node: Node) -> None:
        """Put an unlocked leaf in, at its ``place_of``."""
        ...

    def discard(self, node: Node) -> None:
        """Take the node out, if it is in."""
        ...

    def first(self) -> Node | None:
        """Return the next victim; None when nothing can be evicted."""
        ...

    def num_alike(self, node: Node) -> int:
        """Return how many pages at the end of the victim may go before the next is chosen."""
        ...


class Policy(NamedTuple):
    """How a cache chooses what to evict, and what it remembers to do so.

    Without ``history`` nothing is known of evicted pages; without ``reuse`` nothing is learned.
    """

    order: EvictionOrder
    history: PageHistory | None = None
    reuse: ReuseModel | None = None


class RecencyOrder:
    """Runs of programs that have ended come first, then the least recently used; a parked lease
    makes its runs count as used later than they were. Oldest node first where the clock cannot
    tell."""

    uses_bias = True

    def __init__(self) -> None:
        self._leaves: SortedDict[Place, Node] = SortedDict()

    def __len__(self) -> int:
        return len(self._leaves)

    def place_of(self, node: Node) -> Place:
        """Return (ended or not, last use, age)."""
        used = max(node.used, node.held_until)
        return 0 if node.is_ended else 1, used, node.serial

    def add(self, node: Node) -> None:
        """Put an unlocked leaf in."""
        node.place = self.place_of(node)
        self._leaves[node.place] = node

    def discard(self, node: Node) -> None:
        """Take the node out, if it is in."""
        if node.place is not None:
            del self._leaves[node.place]
            node.place = None

    def first(self) -> Node | None:
        """Return the next victim."""
        return self._leaves.first()

    def num_alike(self, node: Node) -> int:
        """All pages of a run were used last at the same time."""
        return node.num_pages
