"""The structure of the radix tree: split, grow, cut, lock, merge."""

from __future__ import annotations

import struct

from radixrt.cache.counters import CacheCounters
from radixrt.cache.eviction import Policy, RecencyOrder
from radixrt.cache.knowledge import Knowledge
from radixrt.cache.node import (
    HASH_BYTES,
    NEVER,
    PAGE_ID_BYTES,
    TOKEN_BYTES,
    Node,
    page_ids,
)
from radixrt.cache.pagehash import UInt64
from radixrt.cache.pages import Int32, PageAllocator
from radixrt.cache.search import Match, Search
from radixrt.cache.watcher import Watcher

_PAGE_ID = struct.Struct("@i")

ONE_MORE = bytes(min(uses + 1, 255) for uses in range(256))
"""What ``bytes.translate`` makes of a page's uses when it is used again."""


class Tree:
    """Path-compressed trees over pages of tokens, one root a namespace.

    The tree owns the pages of its nodes. ``num_cached`` counts them, ``num_locked`` those of nodes
    with a lock. A lock on a node locks its ancestors, so what is unlocked is closed under
    descendants and can be given up leaf by leaf. Costs O(1) a node that becomes locked or unlocked:
    a path that another lease holds already is not walked.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        page_size: int,
        counters: CacheCounters,
        policy: Policy | None = None,
    ) -> None:
        self.allocator = allocator
        self.counters = counters
        self.page_bytes = page_size * TOKEN_BYTES
        self.roots: dict[str, Node] = {}
        policy = policy or Policy(RecencyOrder())
        self.order = policy.order
        self.known = Knowledge(policy.history, policy.reuse, page_size) if policy.history else None
        self.num_cached = 0
        self.num_locked = 0
        self.watchers: tuple[Watcher, ...] = ()
        self.search = Search(self.page_bytes)
        self._next_serial = 0

    def root(self, namespace: str) -> Node:
        """Return the namespace's root, made on first use; it goes when empty and unlocked."""
        root = self.roots.get(namespace)
        if root is None:
            root = self.roots[namespace] = self._node(None, bytearray(namespace, "utf-8"), b"")
            if self.known is not None:
                root.hashes = self.known.seed(namespace)
        return root

    def match(self, node: Node, key: bytes) -> Match:
        """Return how far the tree below ``node`` knows ``key``. Changes nothing."""
        return self.search.match(node, key)

    # -- structure

    def split(self, node: Node, num_bytes: int) -> Node:
        """Cut ``node`` after ``num_bytes`` of its key; return the new upper part.

        ``node`` stays the lower part, with its children, place and leases.
        """
        parent = node.parent
        assert parent is not None
        assert 0 < num_bytes < len(node.key)
        node.version += 1
        num_page_bytes = num_bytes // self.page_bytes * PAGE_ID_BYTES
        upper = self._node(parent, node.key[:num_bytes], node.pages[:num_page_bytes], node.used)
        upper.locks, upper.parks = min(node.locks, 1), min(node.parks, 1)
        upper.is_ended = node.is_ended
        upper.backed = min(node.backed, upper.num_pages)
        node.backed -= upper.backed
        upper.state = node.state
        if self.known is not None:
            upper.uses = node.uses[: upper.num_pages]
            upper.hashes = node.hashes[: upper.num_pages * HASH_BYTES]
            del node.uses[: upper.num_pages]
            del node.hashes[: upper.num_pages * HASH_BYTES]
        del node.key[:num_bytes]
        del node.pages[:num_page_bytes]
        parent.adopt(self._first_page(upper), upper)
        upper.adopt(self._first_page(node), node)
        node.parent = upper
        for watcher in self.watchers:
            watcher.split(upper, node)
        return upper

    def append(
        self,
        node: Node,
        key: bytes,
        pages: bytes,
        used: float,
        first_page: int,
        watched: dict[int, int],
        keys: UInt64 | None = None,
    ) -> Node:
        """Insert new pages after ``node``, which the caller's lease ends at; return their node.

        ``node`` grows when nobody else needs its end where it is; otherwise it gets a child, and
        the lock moves there. The pages become the tree's. A partial page that ``key`` completes is
        freed. Pages of the sample that is watched are added to the lease's ``watched``, with their
        numbers in the sequence, ``first_page`` for the first. ``keys`` are the pages' hashes, if
        they are known.
        """
        node.version += 1
        if node.children:
            self._free_superseded_by(node, key)
        num_pages = len(pages) // PAGE_ID_BYTES
        self.num_cached += num_pages
        self.num_locked += num_pages
        self.counters.inserted_pages += num_pages
        is_apart = node.parent is None or node.locks > 1 or node.parks or node.children
        uses, hashes, before = bytearray(), b"", node.chain
        if self.known is not None:
            uses, hashes = self.known.born(before, key, used, first_page, watched, keys)
        if not is_apart and len(key) >= self.page_bytes:
            node.key += key
            node.end += len(key)
            node.pages += pages
            node.uses += uses
            node.hashes += hashes
            for watcher in self.watchers:
                watcher.appended(node, before, key)
            return node
        child = self._node(node, bytearray(key), pages, used)
        child.uses, child.hashes = uses, bytearray(hashes)
        # The child holds the lock on the node that the lease held itself until now.
        child.locks = 1
        node.is_branch = node.is_branch or bool(node.children)
        node.adopt(self._first_page(child), child)
        for watcher in self.watchers:
            watcher.appended(child, before, key)
        return child

    def cut(
        self, node: Node, num_pages: int, eviction: tuple[int, float, int] | None = None
    ) -> Int32:
        """Give up the last ``num_pages`` of an unlocked leaf, all of it if it has no more.

        Returns the pages, which are the caller's now. ``eviction`` is what is remembered of it:
        the tier, when, and for which request.
        """
        assert node.parent is not None
        assert not node.locks
        assert not node.children
        for watcher in self.watchers:
            watcher.cut(node, min(num_pages, node.num_pages))
        node.version += 1
        if num_pages < node.num_pages:
            pages = bytes(node.pages[-num_pages * PAGE_ID_BYTES :])
            self._shorten(node, num_pages, eviction)
        else:
            pages = bytes(node.pages)
            if self.known is not None and eviction is not None:
                self.known.cut(node, node.num_pages, eviction)
            self.order.discard(node)
            del node.parent.children[self._first_page(node)]
            node.end -= len(node.key)
            node.key, node.pages = bytearray(), bytearray()
            parent = node.parent
            parent.used = max(parent.used, node.used)
            if parent.parks:
                parent.state = node.state
            if node.held_until > parent.held_until:
                parent.held_until, parent.priority = node.held_until, node.priority
            self._settle(parent)
        self.num_cached -= len(pages) // PAGE_ID_BYTES
        return page_ids(pages)

    def cut_one(self, node: Node, eviction: tuple[int, float, int]) -> int:
        """``cut`` for the last page of several, without arrays: the case that is in every step's
        path."""
        for watcher in self.watchers:
            watcher.cut(node, 1)
        node.version += 1
        (page,) = _PAGE_ID.unpack_from(node.pages, len(node.pages) - PAGE_ID_BYTES)
        self._shorten(node, 1, eviction)
        self.num_cached -= 1
        return int(page)

    # -- locks

    def lock(self, node: Node) -> None:
        """Add a lock to ``node``, and by it to its ancestors."""
        step: Node | None = node
        for watcher in self.watchers:
            watcher.changed(node)
        while step is not None:
            step.locks += 1
            if step.locks > 1:
                return
            self.num_locked += len(step.pages) // PAGE_ID_BYTES
            if step.place is not None:
                self.order.discard(step)
            step = step.parent

    def unlock(self, node: Node) -> None:
        """Take a lock from ``node``; runs that nobody needs apart any more are merged.

        Without that a conversation whose turns once overlapped would stay a chain of short nodes.
        """
        step: Node | None = node
        mergeable: list[Node] = []
        while step is not None:
            step.locks -= 1
            if step.locks:
                break
            self.num_locked -= len(step.pages) // PAGE_ID_BYTES
            if not step.children:
                self._settle(step)
            elif len(step.children) == 1 and not step.is_branch:
                mergeable.append(step)
            step = step.parent
        for watcher in self.watchers:
            watcher.changed(node)
        # From the top down the run that has been joined so far grows in place.
        for parent in reversed(mergeable):
            self._merge(parent)

    def move_lock(self, node: Node, to: Node) -> None:
        """Move a lock from ``node`` to itself or a descendant."""
        if to is not node:
            self.lock(to)
            node.locks -= 1

    def touch(self, node: Node, used: float) -> None:
        """Note a use of the path of ``node``, which is locked.

        Ancestors learn of it when they become leaves: only then does it matter. ``NEVER`` is no
        use: copying what is cached to another tier is none.
        """
        if used == NEVER:
            return
        node.used = max(node.used, used)
        step: Node | None = node
        while step is not None and step.is_ended:
            step.is_ended = False
            step = step.parent

    def use(self, node: Node, used: float) -> None:
        """``touch`` for a path that need not be locked."""
        self.touch(node, used)
        self._replace(node)

    def park(self, node: Node, state: int) -> None:
        """Count a parked lease at ``node``, and by it at its ancestors. Its path is locked.

        ``state`` is what is expected of the branch.
        """
        step: Node | None = node
        while step is not None:
            step.parks += 1
            step.state = state
            if step.parks > 1:
                return
            step = step.parent

    def unpark(self, node: Node) -> None:
        """Take a parked lease from ``node``, which may have left the tree."""
        step: Node | None = node
        for watcher in self.watchers:
            watcher.changed(node)
        while step is not None:
            step.parks -= 1
            if step.parks:
                return
            self._replace(step)
            step = step.parent

    def hold(self, node: Node, until: float, priority: int) -> None:
        """Ask to keep the path of ``node`` until a clock time; what continues it is not meant.

        Ancestors learn of it when they become leaves. ``NEVER`` takes the wish back.
        """
        node.held_until, node.priority = until, priority
        self._replace(node)
        for watcher in self.watchers:
            watcher.changed(node)

    def warm(self, node: Node) -> None:
        """Count a use of every page of the path of ``node``, which is locked."""
        step: Node | None = node
        while step is not None and step.parent is not None:
            step.uses = step.uses.translate(ONE_MORE)
            step = step.parent

    def end(self, node: Node, used: float) -> int:
        """Order first for eviction what only the ended path of ``node`` has used.

        That is its end, up to where another lease is, or where something else has branched off.
        Returns how many pages that are.
        """
        num_ended = 0
        below: Node | None = None
        while node.parent is not None:
            if not node.is_dead:
                children = node.children
                if (
                    node.locks
                    or node.parks
                    or node.is_branch
                    or len(children) > (below is not None)
                ):
                    return num_ended
                num_ended += node.num_pages
                node.is_ended = True
                node.held_until = NEVER
                node.used = used
                self._replace(node)
                below = node
            node = node.parent
        return num_ended

    # -- inside

    def _shorten(self, node: Node, num_pages: int, eviction: tuple[int, float, int] | None) -> None:
        """Take the last pages off a leaf that has more."""
        if self.known is not None:
            self.known.cut(node, num_pages, eviction)
        num_bytes = num_pages * self.page_bytes
        del node.key[-num_bytes:]
        del node.pages[-num_pages * PAGE_ID_BYTES :]
        node.end -= num_bytes
        if node.end < node.least_end:
            node.least_end = node.end
        if node.backed:
            node.backed = min(node.backed, node.num_pages)
        self._replace(node)

    def _node(
        self, parent: Node | None, key: bytearray, pages: bytes | bytearray, used: float = NEVER
    ) -> Node:
        self._next_serial += 1
        return Node(self._next_serial, parent, key, bytearray(pages), used)

    def _first_page(self, node: Node) -> bytes:
        return bytes(node.key[: self.page_bytes])

    def _is_superseded(self, node: Node) -> bool:
        if len(node.key) >= self.page_bytes or node.parent is None:
            return False
        key = bytes(node.key)
        _, longer = node.parent.children.neighbours(key + b"\0")
        return longer is not None and longer.startswith(key)

    def _free_superseded_by(self, node: Node, key: bytes) -> None:
        shorter, _ = node.children.neighbours(key[: self.page_bytes])
        if shorter is not None and len(shorter) < self.page_bytes and key.startswith(shorter):
            partial = node.children[shorter]
            if partial.locks == 0:
                self._free(partial)

    def _settle(self, node: Node) -> None:
        """Put a node that may have become an unlocked leaf where it belongs."""
        if node.locks or node.children:
            return
        if node.parent is None:
            namespace = node.key.decode("utf-8")
            if self.roots.get(namespace) is node:
                node.version += 1
                del self.roots[namespace]
        elif self._is_superseded(node):
            self._free(node)
        else:
            self.order.add(node)

    def _replace(self, node: Node) -> None:
        """Give a leaf in the eviction order the place of its new state."""
        if node.place is not None and node.place != self.order.place_of(node):
            self.order.discard(node)
            self.order.add(node)

    def _free(self, superseded: Node) -> None:
        self.allocator.give(self.cut(superseded, 1))
        self.counters.superseded_pages += 1

    def _merge(self, node: Node) -> None:
        """Join ``node`` to its only child unless a lease, a use or a partial page is between."""
        parent, (child,) = node.parent, node.children.values()
        if (
            parent is None
            or node.used > child.used
            or node.is_ended != child.is_ended
            or node.parks != min(child.parks, 1)
            or len(child.key) < self.page_bytes
        ):
            return
        node.version += 1
        if node.backed == node.num_pages:
            node.backed += child.backed
        child.backed = node.backed
        child.uses = node.uses + child.uses
        child.hashes = node.hashes + child.hashes
        if node.held_until > child.held_until:
            child.held_until, child.priority = node.held_until, node.priority
        node.end -= len(node.key)
        node.key += child.key
        node.pages += child.pages
        child.key, child.pages, child.parent = node.key, node.pages, parent
        parent.adopt(self._first_page(child), child)
        self._replace(child)
        for watcher in self.watchers:
            watcher.merged(node, child)
