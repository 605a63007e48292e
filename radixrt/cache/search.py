"""Finding tokens in a tree. Nothing here changes it."""

from __future__ import annotations

from typing import Final, NamedTuple

from radixrt.cache.node import NEVER, TOKEN_BYTES, Node, common_prefix
from radixrt.cache.shortcuts import Shortcuts


class Match(NamedTuple):
    """How far a key is known below a node, in bytes.

    ``end`` is the last node that is matched to its end, the one the search began at if none is;
    ``matched`` bytes lead there. ``child`` continues for ``split`` bytes of full pages and ``tail``
    bytes of one more page. ``version`` is that of both nodes at the time: the match says what a
    search would find while it ``is_current``, whatever happens elsewhere in the tree.
    """

    end: Node
    matched: int
    child: Node | None
    split: int
    tail: int
    version: int

    @property
    def is_current(self) -> bool:
        """Whether a search would find the same now."""
        return self.version == _version_of(self.end, self.child)

    @property
    def num_bytes(self) -> int:
        """Bytes of the key that are known."""
        return self.matched + self.split + self.tail

    def path(self, start: Node) -> list[Node]:
        """Return the nodes that were matched to their ends, for a search that began at ``start``.

        They are sought when they are asked for: each is a cache miss or two.
        """
        path: list[Node] = []
        node = self.end
        while node is not start:
            assert node.parent is not None
            path.append(node)
            node = node.parent
        return path[::-1]


def _version_of(end: Node, child: Node | None) -> int:
    # Neither ever shrinks, so the sum tells whether one has grown.
    return end.version if child is None else end.version + child.version


NOTHING: Final = Match(Node(0, None, bytearray(), bytearray(), NEVER), 0, None, 0, 0, 0)
"""The match of a key in a namespace that has nothing."""


class Search:
    """Walks of one tree, with shortcuts past what was walked before."""

    def __init__(self, page_bytes: int) -> None:
        self.shortcuts = Shortcuts(page_bytes)
        self._page_bytes = page_bytes

    def match(self, node: Node, key: bytes) -> Match:
        """Return how far the tree below ``node`` knows ``key``."""
        if node.parent is not None:
            return self._walk(node, key, 0)[0]
        start = self.shortcuts.find(node, key)
        found, num_walked = self._walk(start, key, start.end)
        self.shortcuts.note(node, key, found.end, num_walked)
        return found

    def _walk(self, node: Node, key: bytes, at: int) -> tuple[Match, int]:
        """Match ``key`` from byte ``at`` on below ``node``; also return how many nodes below it
        were matched to their ends."""
        page_bytes = self._page_bytes
        num_walked = 0
        last = len(key) - page_bytes
        while at <= last:
            child = node.children.get(key[at : at + page_bytes])
            if child is None:
                break
            run = child.key
            num = len(run)
            # The lookup has compared the first page.
            if num > page_bytes and not key.startswith(run, at):
                common = common_prefix(key, at, run)
                tail = common % page_bytes
                version = _version_of(node, child)
                return Match(node, at, child, common - tail, tail, version), num_walked
            at += num
            node = child
            num_walked += 1
        nearest, tail = self._nearest_page(node, key[at : at + page_bytes])
        return Match(node, at, nearest, 0, tail, _version_of(node, nearest)), num_walked

    def _nearest_page(self, node: Node, wanted: bytes) -> tuple[Node | None, int]:
        best, tail = None, 0
        if wanted and node.children and self._page_bytes > TOKEN_BYTES:
            for neighbour in node.children.neighbours(wanted):
                common = common_prefix(wanted, 0, neighbour) if neighbour is not None else 0
                if common > tail:
                    best, tail = neighbour, common
        return (None if best is None else node.children[best]), tail


def text_from(node: Node, at: int, num_bytes: int) -> bytes:
    """Return up to ``num_bytes`` of what is in the tree from byte ``at`` of a node's key on,
    along the first children."""
    found = bytes(node.key[at : at + num_bytes])
    step: Node | None = node
    while found and len(found) < num_bytes and step is not None:
        step = step.children.first()
        found += bytes(step.key[:num_bytes]) if step is not None else b""
    return found[:num_bytes]


def below(node: Node) -> list[Node]:
    """Return ``node`` and everything that continues it, children before their parents."""
    nodes = [node]
    for parent in nodes:
        nodes += parent.children.values()
    return nodes[::-1]
