"""Who is told what happens to a tree."""

from __future__ import annotations

from typing import Protocol

from radixrt.cache.node import Node


class Watcher(Protocol):
    """Is told what happens to a tree (``Tree.watchers``), by the cache's thread; changes nothing.

    Of ``cut`` and ``cleared`` it hears before, of all else afterwards.
    """

    def appended(self, node: Node, before: int, key: bytes) -> None:
        """The run of ``node`` ends in the new tokens ``key``, behind the hash ``before``."""

    def cut(self, node: Node, num_pages: int) -> None:
        """The last pages of an unlocked leaf are given up; all of them: it leaves the tree."""

    def split(self, upper: Node, lower: Node) -> None:
        """A run became two; ``upper`` is a new node."""

    def merged(self, upper: Node, lower: Node) -> None:
        """``lower`` has the run of both now; ``upper`` has left the tree."""

    def changed(self, node: Node) -> None:
        """Who uses ``node`` and what is before it, or wants it kept, changed."""

    def cleared(self) -> None:
        """Everything is about to be given up, page by page."""
