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
from radixrt.cache.node import NEVER, PAGE_ID_BYTES, TOKEN_BYTES, decode, encode, page_ids
from radixrt.cache.pagehash import UInt64
from radixrt.cache.pages import Int32, PageAllocator
from radixrt.cache.search import NOTHING, Match, below, text_from
from radixrt.cache.tree import Tree
from radixrt.errors import InvalidArgument, OutOfPages

__all__ = ["CacheCounters", "Extension", "Lease", "Lookup", "RadixCache", "TailPage"]


class Lookup:
    """A prompt that is looked up in a cache: several times at the price of one, while that part of
    the tree stays as it is."""

    __slots__ = ("_match", "_tree", "key", "namespace")

    def __init__(self, tree: Tree, namespace: str, token_ids: Int32) -> None:
        self.namespace = namespace
        self.key = encode(token_ids)
        self._tree = tree
        self._match: Match | None = None

    @property
    def match(self) -> Match:
        """What the tree knows of it now."""
        found = self._match
        if found is None or not found.is_current:
            root = self._tree.roots.get(self.namespace)
            if root is None:
                return NOTHING
            found = self._match = self._tree.match(root, self.key)
        return found

    @property
    def prompt_len(self) -> int:
        """Tokens that are looked up."""
        return len(self.key) // TOKEN_BYTES

    @property
    def num_tokens(self) -> int:
        """How many of the first tokens are cached now, the tail included."""
        return self.match.num_bytes // TOKEN_BYTES


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

    def lookup(self, namespace: str, token_ids: Int32) -> Lookup:
        """Return a way to ask more than once what is cached of ``token_ids``. Changes nothing."""
        return Lookup(self._tree, namespace, token_ids)

    def acquire(self, namespace: str, token_ids: Int32) -> Lease:
        """Lock and touch the longest cached prefix of ``token_ids`` (int32 [n]); may split nodes.

        The lease covers its full pages and offers the page in which the match ends as ``tail``. It
        may cover nothing; release it all the same.
        """
        return self.acquire_found(self.lookup(namespace, token_ids))

    def acquire_found(self, lookup: Lookup) -> Lease:
        """``acquire`` for a prompt that was looked up before."""
        tree, counters = self._tree, self.counters
        root = tree.root(lookup.namespace)
        found = lookup.match
        lease = leases.acquire(tree, self._clock, root, lookup.key, found)
        counters.acquired += 1
        counters.asked_tokens += lookup.prompt_len
        counters.hit_tokens += found.num_bytes // TOKEN_BYTES
        return lease

    def use(self, prompt: Lookup, first_page: int = 0) -> tuple[Int32, int]:
        """Count a use of the longest prefix of ``prompt`` that is cached; return its full pages
        from ``first_page`` on, and how many full pages it has.

        The prompt may have been looked up in another cache. Nothing is locked or split: the pages
        are the tree's, until something is evicted.
        """
        root = self._tree.roots.get(prompt.namespace)
        if root is None:
            return np.zeros(0, np.int32), 0
        found = self._tree.match(root, prompt.key)
        child, num_pages = found.child, found.split // self._tree.page_bytes
        total = found.matched // self._tree.page_bytes + num_pages
        runs: list[bytes | bytearray] = []
        if child is not None and num_pages:
            runs.append(child.pages[: num_pages * PAGE_ID_BYTES])
            self._tree.use(child, self._clock())
        elif found.end.parent is not None:
            self._tree.use(found.end, self._clock())
        at, node = total - num_pages, found.end
        while at > first_page and node.parent is not None:
            runs.append(node.pages)
            at -= node.num_pages
            node = node.parent
        self.counters.acquired += 1
        self.counters.asked_tokens += prompt.prompt_len
        self.counters.hit_tokens += found.num_bytes // TOKEN_BYTES
        return page_ids(b"".join(reversed(runs)))[max(first_page - at, 0) :], total

    def hold(self, namespace: str, token_ids: Int32) -> Lease:
        """``acquire`` without counting as a use: for who copies pages to another tier."""
        root, key = self._tree.root(namespace), encode(token_ids)
        return leases.acquire(self._tree, _never, root, key, self._tree.match(root, key))

    def continuation(self, namespace: str, token_ids: Int32, num: int) -> Int32:
        """Return up to ``num`` tokens that follow, in the cache, the longest cached prefix of
        ``token_ids``; nothing when nothing does. Changes nothing."""
        root = self._tree.roots.get(namespace)
        if root is None:
            return np.zeros(0, np.int32)
        key = encode(token_ids)
        found = self._tree.match(root, key)
        node, at = found.child, found.split + found.tail
        if node is None:
            end = found.end
            wanted = key[found.matched : found.matched + self._tree.page_bytes]
            for near in end.children.neighbours(wanted):
                if near is not None:
                    node = end.children[near]
                    break
            else:
                return np.zeros(0, np.int32)
        return decode(text_from(node, at, num * TOKEN_BYTES))

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
        if missing > 0:
            self.evict(missing, whom)
        return self._allocator.take(num_pages)

    def take_one(self, whom: int = 0) -> int:
        """``take`` for one page, without arrays if one is free."""
        if not self._allocator.num_free:
            return int(self.take(1, whom)[0])
        return self._allocator.take_one()

    def evict(self, num_pages: int, whom: int = 0) -> int:
        """Give ``num_pages`` pages back to the allocator, or all evictable ones if they are fewer.

        Victims are unlocked leaves in the order of ``EvictionOrder``, each from its end. Returns
        how many pages were given back.
        """
        tree, given, eviction = self._tree, 0, (self._tier, self._clock(), whom)
        while given < num_pages and (leaf := tree.order.first()) is not None:
            if num_pages - given == 1 and leaf.num_pages > 1:
                self._allocator.give_one(tree.cut_one(leaf, eviction))
                given += 1
            else:
                num = min(num_pages - given, tree.order.num_alike(leaf))
                pages = tree.cut(leaf, num, eviction)
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
        first = found.end
        start = num_pages * self.page_size * TOKEN_BYTES
        end = found.matched
        if found.child is not None and found.split:
            first, end = found.child, found.matched + len(found.child.key)
        if found.matched + found.split <= start or first.parent is None:
            return 0
        if end - len(first.key) < start:
            self._tree.split(first, start - (end - len(first.key)))
        given = 0
        for node in below(first):
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
        evicted = self.evict(self.num_evictable)
        self._allocator.sort()
        return evicted

    def check(self) -> None:
        """Assert every invariant of the tree and its accounts; for tests, walks all of it."""
        check_tree(self._tree)


def _never() -> float:
    return NEVER
