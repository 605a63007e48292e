"""In which order cached runs are given up."""

from __future__ import annotations

from radixrt.cache.node import Node, Place
from radixrt.cache.sorted_dict import SortedDict


class EvictionOrder:
    """The unlocked leaves, the next victim first.

    Runs of programs that have ended come first, then the least recently used; a parked lease makes
    its runs count as used later than they were. Oldest node first where the clock cannot tell.
    """

    def __init__(self) -> None:
        self._leaves: SortedDict[Place, Node] = SortedDict()

    def __len__(self) -> int:
        return len(self._leaves)

    def add(self, node: Node) -> None:
        """Put an unlocked leaf in, at the place its use gives it now."""
        node.place = (0 if node.is_ended else 1, node.used, node.serial)
        self._leaves[node.place] = node

    def discard(self, node: Node) -> None:
        """Take the node out, if it is in."""
        if node.place is not None:
            del self._leaves[node.place]
            node.place = None

    def first(self) -> Node | None:
        """Return the next victim; None when nothing can be evicted."""
        return self._leaves.first()
