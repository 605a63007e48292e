"""Shortcuts past parts of the tree that many runs have branched off."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from radixrt.cache.node import Node, common_prefix

MIN_NODES: Final = 32
"""Nodes that a walk takes before it is worth a shortcut; comparing the tokens of one costs as much
as a few nodes."""

LONG_RUN_BYTES: Final = 4096
"""Runs of a path's end that are longer than this are quick to walk: they need no shortcut."""

MAX_WAYS: Final = 4
"""Shortcuts for prefixes that begin with the same page."""

MAX_BYTES: Final = 16 << 20
"""Bytes of key that all shortcuts hold."""


class _Way(NamedTuple):
    key: bytes
    node: Node


class Shortcuts:
    """Where long walks of a tree have ended, so that the next one along the same tokens starts
    there.

    A walk is slow by its cache misses, eight a node; the tokens of a shortcut lie in one piece. It
    promises nothing but what a walk would find: while a node is in the tree the tokens from the
    root to its end stay the same, but for what is cut from that end and grows there again. So a
    node that still is in the tree leads to the same place up to its ``least_end``, and so do its
    ancestors; those that have left the tree are passed on the way up.

    Changes of the tree need not be told. Of what is remembered the least recently used goes first.
    """

    def __init__(self, page_bytes: int, min_nodes: int = MIN_NODES) -> None:
        self._page_bytes = page_bytes
        self._min_nodes = min_nodes
        self._ways: OrderedDict[tuple[int, bytes], list[_Way]] = OrderedDict()
        self._num_bytes = 0

    def find(self, root: Node, key: bytes) -> Node:
        """Return a node of the tree below ``root`` whose whole prefix ``key`` begins with, the
        deepest that is remembered; the root if none is."""
        place = root.serial, key[: self._page_bytes]
        ways = self._ways.get(place)
        if ways is None:
            return root
        self._ways.move_to_end(place)
        agreed, node = max(
            ((common_prefix(key, 0, way.key), way.node) for way in ways), key=lambda found: found[0]
        )
        while node.parent is not None:
            agreed = min(agreed, node.least_end)
            if node.end <= agreed:
                # The tokens of its own run are at hand: they have the last word.
                if self._is_in_tree(node) and key.startswith(node.key, node.end - len(node.key)):
                    return node
                agreed = node.end  # where its run began, before which nothing of it says more
            node = node.parent
        return root

    def note(self, root: Node, key: bytes, end: Node, num_walked: int) -> None:
        """``num_walked`` nodes had to be walked to find ``end``; ``key`` begins with its prefix."""
        while num_walked >= self._min_nodes and len(end.key) > LONG_RUN_BYTES:
            assert end.parent is not None
            end = end.parent
            num_walked -= 1
        if num_walked < self._min_nodes:
            return
        way = _Way(key[: end.end], end)
        ways = self._ways.setdefault((root.serial, key[: self._page_bytes]), [])
        # One that led to a part of the same path is replaced.
        kept = [old for old in ways if not way.key.startswith(old.key)][-MAX_WAYS + 1 :]
        self._num_bytes += len(way.key) + sum(len(old.key) for old in kept)
        self._num_bytes -= sum(len(old.key) for old in ways)
        ways[:] = [*kept, way]
        while self._num_bytes > MAX_BYTES:
            _, gone = self._ways.popitem(last=False)
            self._num_bytes -= sum(len(old.key) for old in gone)

    def keys(self, root: Node) -> list[bytes]:
        """Return the prefixes below ``root`` that have a shortcut, for checks."""
        of_root = [ways for (serial, _), ways in self._ways.items() if serial == root.serial]
        return [way.key for ways in of_root for way in ways]

    def _is_in_tree(self, node: Node) -> bool:
        parent = node.parent
        assert parent is not None
        return parent.children.get(bytes(node.key[: self._page_bytes])) is node
