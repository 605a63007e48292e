"""The prefix cache: which tokens' K and V are in which pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from radixrt.cache import lease as leases
from radixrt.cache.counters import CacheCounters
from radixrt.cache.eviction import Policy
from radixrt.cache.history import Eviction
from radixrt.cache.invariants import check_tree
from radixrt.cache.lease import Extension, Lease, TailPage
from radixrt.cache.node import NEVER, TOKEN_BYTES, decode, encode
from radixrt.cache.pagehash import UInt64
from radixrt.cache.pages import Int32, PageAllocator
from radixrt.cache.tree import Tree
from radixrt.errors import InvalidArgument, OutOfPages

__all__ = ["CacheCounters", "Extension", "Lease", "RadixCache", "TailPage"]


class RadixCache:
    """A radix tree over pages of tokens, one root a namespace; shares prefixes token by token.

    The cache owns the pages of its nodes until it evicts them. free + cached + the callers' private
    pages are always all pages of the allocator. One thread uses a cache; it takes no lock.

    Source: RadixAttention (Zheng et al., SGLang, 2024), over pages and with copy on write of the
    page in which a match ends.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        page_size: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        policy: Policy | None = None,
        tier: int = 0,
    ) -> None:
        """``policy`` says what to evict, by default what was used least recently; one that
        remembers notes evictions as those of ``tier``."""
        if page_size < 1:
            raise InvalidArgument("page_size", page_size, "a page holds at least 1 token")
        self.page_size = page_size
        self.counters = CacheCounters()
        self._allocator = allocator
        self._tree = Tree(allocator, page_size, self.counters, policy)
        self._tier = tier
        self._clock = clock

    @property
    def num_cached(self) -> int:
        """Pages the cache owns. O(1)."""
        return self._tree.num_cached

    @property
    def num_evictable(self) -> int:
        """Pages ``evict`` could give back now: those no held lease locks. Exact, O(1)."""
        return self._tree.num_cached - self._tree.num_locked

    @property
    def tree(self) -> Tree:
        """The structure itself, to be looked at and watched by others, never changed."""
        return self._tree

    @property
    def num_locked(self) -> int:
        """Pages that held leases lock. O(1)."""
        return self._tree.num_locked

    @property
    def num_leaves(self) -> int:
        """Runs that could be evicted next: the unlocked leaves. O(1)."""
        return len(self._tree.order)

    def now(self) -> float:
        """Return the time on the cache's clock, in seconds."""
        return self._clock()

    def peek(self, namespace: str, token_ids: Int32) -> int:
        """Return how many of the first tokens are cached, the tail included. Changes nothing."""
        root = self._tree.roots.get(namespace)
        return self._tree.match(root, encode(token_ids)).num_bytes // TOKEN_BYTES if root else 0

    def acquire(self, namespace: str, token_ids: Int32) -> Lease:
        """Lock and touch the longest cached prefix of ``token_ids`` (int32 [n]); may split nodes.

        The lease covers its full pages and offers the page in which the match ends as ``tail``. It
        may cover nothing; release it all the same.
        """
        lease = leases.acquire(self._tree, self._clock, namespace, encode(token_ids))
        self.counters.acquired += 1
        self.counters.asked_tokens += len(token_ids)
        self.counters.hit_tokens += lease.num_tokens
        self.counters.hit_tokens += lease.tail.num_tokens if lease.tail else 0
        return lease

    def hold(self, namespace: str, token_ids: Int32) -> Lease:
        """``acquire`` without counting as a use: for who copies pages to another tier."""
        return leases.acquire(self._tree, _never, namespace, encode(token_ids))

    def continuation(self, namespace: str, token_ids: Int32, num: int) -> Int32:
        """Return up to ``num`` tokens that follow, in the cache, the longest cached prefix of
        ``token_ids``; nothing when nothing does. Changes nothing."""
        root = self._tree.roots.get(namespace)
        if root is None:
            return np.zeros(0, np.int32)
        key = encode(token_ids)
        found = self._tree.match(root, key)
        node, rest = found.child, b""
        if node is not None:
            rest = bytes(node.key[found.split + found.tail :])
        else:
            end = found.path[-1] if found.path else root
            wanted = key[found.matched : found.matched + self._tree.page_bytes]
            for near in end.children.neighbours(wanted):
                if near is not None:
                    node = end.children[near]
                    rest = bytes(node.key[: num * TOKEN_BYTES])
                    break
        while rest and len(rest) < num * TOKEN_BYTES and node is not None:
            node = node.children.first()
            rest += bytes(node.key[: num * TOKEN_BYTES]) if node is not None else b""
        rest = rest[: num * TOKEN_BYTES]
        return decode(rest)

    def evictions(
        self, namespace: str, token_ids: Int32, first_page: int, keys: UInt64 | None = None
    ) -> Iterator[tuple[int, Eviction | None]]:
        """Yield each full page of ``token_ids`` from ``first_page`` on, with what is remembered of
        its last eviction; None: it was never evicted, or that was forgotten. ``keys`` are a lease's
        ``page_keys``, which spare hashing."""
        known = self._tree.known
        num_pages = len(token_ids) // self.page_size
        if known is None or first_page >= num_pages:
            return
        if keys is None or len(keys) < num_pages:
            keys = known.keys_of(namespace, encode(token_ids[: num_pages * self.page_size]))
        yield from enumerate(known.history.evictions(keys[first_page:]), first_page)

    def take(self, num_pages: int, whom: int = 0) -> Int32:
        """Return ``num_pages`` pages, the caller's from now on, evicting as many as are not free;
        ``whom`` is the number of the request that they are for.

        Raises ``OutOfPages``, and evicts none, when free and evictable pages are too few.
        """
        missing = num_pages - self._allocator.num_free
        if missing > self.num_evictable:
            raise OutOfPages(
                f"{num_pages} pages asked for, {self._allocator.num_free} are free and "
                f"{self.num_evictable} evictable"
            )
        self.evict(missing, whom)
        return self._allocator.take(num_pages)

    def evict(self, num_pages: int, whom: int = 0) -> int:
        """Give ``num_pages`` pages back to the allocator, or all evictable ones if they are fewer.

        Victims are unlocked leaves in the order of ``EvictionOrder``, each from its end. Returns
        how many pages were given back.
        """
        tree, given, now = self._tree, 0, self._clock()
        while given < num_pages and (leaf := tree.order.first()) is not None:
            num = min(num_pages - given, tree.order.num_alike(leaf))
            pages = tree.cut(leaf, num, (self._tier, now, whom))
            self._allocator.give(pages)
            given += len(pages)
        self.counters.evicted_pages += given
        return given

    def forget(self, namespace: str, token_ids: Int32, num_pages: int) -> int:
        """Give back what is cached of ``token_ids`` behind its first ``num_pages`` pages, and what
        continues it, but for what a held lease locks; return how many pages that were."""
        root = self._tree.roots.get(namespace)
        key = encode(token_ids)[: (num_pages + 1) * self.page_size * TOKEN_BYTES]
        if root is None:
            return 0
        found = self._tree.match(root, key)
        first = found.path[-1] if found.path else root
        start = num_pages * self.page_size * TOKEN_BYTES
        below = found.matched
        if found.child is not None and found.split:
            first, below = found.child, found.matched + len(found.child.key)
        if found.matched + found.split <= start or first.parent is None:
            return 0
        if below - len(first.key) < start:
            self._tree.split(first, start - (below - len(first.key)))
        given = 0
        for node in self._tree.below(first):
            if not node.locks and not node.children and not node.is_dead:
                pages = self._tree.cut(node, node.num_pages)
                self._allocator.give(pages)
                given += len(pages)
        self.counters.evicted_pages += given
        return given

    def sequences(self) -> Iterator[tuple[str, Int32]]:
        """Yield the namespace and the tokens of every cached sequence that no other one continues,
        without a last page that is not full. The tree must not change meanwhile."""
        for namespace, root in self._tree.roots.items():
            stack = [(root, b"")]
            while stack:
                node, before = stack.pop()
                key = before + bytes(node.key) if node is not root else b""
                children = [
                    c for c in node.children.values() if len(c.key) >= self._tree.page_bytes
                ]
                stack += [(child, key) for child in children]
                if key and not children:
                    yield namespace, decode(key)

    def clear(self) -> int:
        """Evict everything no held lease locks; return how many pages that were."""
        if not self._tree.num_locked:
            for watcher in self._tree.watchers:
                watcher.cleared()
        return self.evict(self.num_evictable)

    def check(self) -> None:
        """Assert every invariant of the tree and its accounts; for tests, walks all of it."""
        check_tree(self._tree)


def _never() -> float:
    return NEVER
