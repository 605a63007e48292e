"""A held path of the tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from radixrt.cache.knowledge import NO_KEYS, UNKNOWN, Known
from radixrt.cache.node import NEVER, TOKEN_BYTES, Node, decode, encode, page_ids
from radixrt.cache.pagehash import UInt64
from radixrt.cache.pages import Int32
from radixrt.cache.reuse import ENDED, PLAIN, idle_state
from radixrt.cache.search import Match, text_from
from radixrt.cache.tree import Tree
from radixrt.errors import InvalidArgument


class TailPage(NamedTuple):
    """A page of the tree whose first ``num_tokens`` tokens continue the match. Nobody locks it."""

    page: int
    num_tokens: int


class Extension(NamedTuple):
    """What ``Lease.extend`` made of the caller's pages.

    ``pages``       int32: the canonical pages of the lease's path, full pages only
    ``duplicates``  int32: pages whose tokens the tree had already; they stay the caller's
    """

    pages: Int32
    duplicates: Int32


class Lease:
    """A path that stays in the tree until ``release()`` or ``park()``.

    A request with n tokens and a lease of m (a multiple of the page size):

        0 ────────────── m ──────────────── n
        │ tree's, locked │ the request's own │

    ``num_tokens`` is m and ``pages`` (int32 [m / page size]) are the tree's, valid until the lease
    is released or parked. ``tail`` is a page of the tree whose first tokens continue the match:
    copy it into a page of your own before anybody else can write to it. The next ``take`` may evict
    it and return that very page, which then needs no copy. After ``note_use``, ``page_keys`` uint64
    are the hashes of the prompt's full pages, ``prompt`` (as ``encode`` writes it) being what the
    lease was acquired for.

    One thread, the cache's, uses a lease.
    """

    def __init__(
        self,
        tree: Tree,
        clock: Callable[[], float],
        node: Node,
        tail: TailPage | None,
        num_tokens: int,
        pages: Int32,
        prompt: bytes,
        beyond: tuple[Node, int] | None,
        seed: int,
    ) -> None:
        self.num_tokens = num_tokens
        self.pages = pages
        self.tail = tail
        self._tree = tree
        self._clock = clock
        self._node = node
        self._state = "held"
        self._num_pages = len(pages)
        self._watched: dict[int, int] = {}  # watched pages of the path: hash, number
        self.page_keys: UInt64 = NO_KEYS
        self._prompt = prompt
        self._beyond = (
            beyond  # who has other tokens behind the match, and bytes from the root there
        )
        self._seed = seed

    @property
    def is_held(self) -> bool:
        """Whether the path is locked: neither parked nor released yet."""
        return self._state in ("held", "final")

    def extend(self, token_ids: Int32, pages: Int32, *, final: bool = False) -> Extension:
        """Insert a sequence the lease begins with; the lease then covers all its full pages.

        ``token_ids`` int32 [n] is the whole sequence, ``pages`` int32 [≥ n / page size] a page for
        each page of it; the first ``len(self.pages)`` entries are not looked at. Pages behind them
        become the tree's where the tree lacked their tokens, else they are returned as duplicates.
        A last page that is not full stays the caller's, unless ``final``: then it is treated like
        the others, and this was the lease's last ``extend``. Pages past the sequence stay the
        caller's.

        Raises ``InvalidArgument`` when the lease is not held or the arrays do not fit it.
        """
        tree, page_bytes = self._tree, self._tree.page_bytes
        num_old = len(self.pages)
        self._check_extend(len(token_ids), len(pages), final)
        key = encode(token_ids[self.num_tokens :])
        num_tail = len(key) % page_bytes
        full = key[: len(key) - num_tail]
        own = np.ascontiguousarray(
            pages[num_old : num_old + -(-len(key) // page_bytes)], dtype=np.int32
        )
        now = self._clock()
        end, canonical, num_known = self._node, [self.pages], 0
        if end.children:
            found = tree.match(end, full)
            path = found.path(end)
            if found.child is not None and found.split:
                path.append(tree.split(found.child, found.split))
            if path:
                end = path[-1]
                tree.move_lock(self._node, end)
                num_known = (found.matched + found.split) // page_bytes
                canonical.append(page_ids(b"".join([node.pages for node in path])))
        tree.touch(end, now)
        new = own[num_known : len(full) // page_bytes]
        if len(new):
            canonical.append(new)
            more = full[num_known * page_bytes :]
            first_page = num_old + num_known
            keys = self._known_keys(end.chain, first_page, more)
            end = tree.append(end, more, new.tobytes(), now, first_page, self._watched, keys)
        duplicates = own[:num_known].copy()  # the caller may write to its array
        self._node = end
        if final:
            self._state = "final"
            if num_tail and not self._append_partial(key[len(full) :], own[-1:], now):
                duplicates = np.concatenate([duplicates, own[-1:]])
        self.num_tokens += len(full) // TOKEN_BYTES
        if len(canonical) > 1:
            self.pages = np.concatenate(canonical)
            self._num_pages = len(self.pages)
        tree.counters.duplicate_pages += len(duplicates)
        return Extension(self.pages, duplicates)

    def note_use(self, *, is_first: bool = True, known: Known = UNKNOWN) -> None:
        """Count what the lease was acquired for as a use of the whole prompt.

        With ``is_first`` False the same request runs again: that is none. ``known`` is what another
        lease of a text with the same beginning knew (``known_of``): only the rest is hashed.
        """
        tree = self._tree
        if tree.known is None:
            return
        self._watched, self.page_keys = tree.known.used(
            self._seed, self._prompt, self._clock(), is_first=is_first, known=known
        )
        if is_first:
            tree.warm(self._node)

    def known_of(self, num_pages: int) -> Known:
        """Return what ``note_use`` found of the first pages, also when the lease is over."""
        return Known(self.page_keys[:num_pages], self._watched)

    def following(self, num: int) -> Int32:
        """Return up to ``num`` tokens that follow, in the cache, the match that the lease was
        acquired with; nothing when nothing does, or nothing any more. Changes nothing."""
        if self._beyond is None:
            return np.zeros(0, np.int32)
        node, at = self._beyond
        # Since then the run may have been split behind that place.
        while (start := node.end - len(node.key)) > at:
            assert node.parent is not None
            node = node.parent
        return decode(text_from(node, at - start, num * TOKEN_BYTES))

    def hold(self, ttl_s: float, priority: int) -> None:
        """Ask to keep the path for ``ttl_s`` seconds of disuse, held or parked. ``priority`` 0 to 3
        ranks such wishes; ``ttl_s`` 0 takes the wish back. Pages may still be evicted for others.
        """
        until = self._clock() + ttl_s if ttl_s > 0 else NEVER
        self._tree.hold(self._node, until, priority)

    def park(self, bias_s: float, *, pause_s: float | None = None) -> None:
        """Turn the lock into a wish: evictable, ordered as if used ``bias_s`` seconds from now, or
        as what is learned of branches that are expected back in ``pause_s`` seconds.

        The pages are no longer valid; ``acquire`` again to use them. Nothing is left to be done
        when they are evicted. ``release()`` still ends the lease.
        """
        if not self.is_held:
            raise InvalidArgument("lease", self._state, "only a held lease can be parked, once")
        now = self._clock()
        state = idle_state(pause_s)
        self._tree.touch(self._node, now + bias_s if self._tree.order.uses_bias else now)
        self._tree.park(self._node, state)
        if self._tree.known is not None:
            self._tree.known.rests(self._watched, state, now)
        self._tree.unlock(self._node)
        self._forget("parked")

    def release(self, *, ended: bool = False) -> None:
        """Let go of the path. Idempotent.

        ``ended`` says that the program has ended: what it alone has used is evicted first.
        """
        if self._state == "released":
            return
        now = self._clock()
        if self._state == "parked":
            self._tree.unpark(self._node)
        else:
            self._tree.touch(self._node, now)
            self._tree.unlock(self._node)
        known = self._tree.known
        if known is not None and self._state != "parked":
            known.rests(self._watched, PLAIN, now)
        if ended:
            num_pages = self._tree.end(self._node, now)
            if known is not None and self._watched:
                first = self._num_pages - num_pages
                tail = [key for key, page in self._watched.items() if page >= first]
                known.rests(tail, ENDED, now)
        self._forget("released")

    def note_backed(self, num_pages: int) -> None:
        """Note in the tree that the tier below has the first ``num_pages`` pages of the path."""
        node: Node | None = self._node
        end = len(self.pages)
        while node is not None and node.parent is not None:
            if len(node.key) >= self._tree.page_bytes:
                start = end - node.num_pages
                node.backed = max(node.backed, min(node.num_pages, num_pages - start))
                end = start
            node = node.parent

    def path(self) -> Iterator[tuple[int, int, int]]:
        """Yield ``(node serial, start, end)`` of the held path in tokens, deepest node first.

        Leases that share a run yield the same serial for it, until the tree next changes.
        """
        node: Node | None = self._node if self.is_held else None
        end = self.num_tokens
        while node is not None and node.parent is not None:
            if len(node.key) >= self._tree.page_bytes:
                yield node.serial, end - node.num_tokens, end
                end -= node.num_tokens
            node = node.parent

    def _check_extend(self, num_tokens: int, num_pages: int, final: bool) -> None:
        if self._state != "held":
            raise InvalidArgument("lease", self._state, "acquire a new lease to extend")
        if num_tokens < self.num_tokens:
            way_out = f"give the whole sequence, the lease covers {self.num_tokens} tokens of it"
            raise InvalidArgument("token_ids", f"{num_tokens} tokens", way_out)
        page_size = self._tree.page_bytes // TOKEN_BYTES
        needed = -(-num_tokens // page_size) if final else num_tokens // page_size
        if num_pages < needed:
            raise InvalidArgument(
                "pages", f"{num_pages} pages", f"give all {needed} of the sequence"
            )

    def _known_keys(self, before: int, first_page: int, key: bytes) -> UInt64 | None:
        """Return the hashes of pages that the prompt said would come, if they did come, and behind
        what the prompt has before them (of hash ``before``)."""
        start = first_page * self._tree.page_bytes
        if not len(self.page_keys) or not self._prompt.startswith(key, start):
            return None
        if first_page and before != int(self.page_keys[first_page - 1]):
            return None
        return self.page_keys[first_page : first_page + len(key) // self._tree.page_bytes]

    def _append_partial(self, key: bytes, page: Int32, now: float) -> bool:
        _, longer = self._node.children.neighbours(key)
        if longer is not None and longer.startswith(key):
            return False
        self._node = self._tree.append(self._node, key, page.tobytes(), now, 0, {})
        return True

    def _forget(self, state: str) -> None:
        self._state = state
        self.tail, self._prompt, self._beyond = None, b"", None
        self.num_tokens = 0
        self.pages = self.pages[:0]


def acquire(tree: Tree, clock: Callable[[], float], root: Node, key: bytes, found: Match) -> Lease:
    """Lock and touch the path that was found of ``key`` below ``root``; the tree has not changed
    since."""
    end, path, child = found.end, found.path(root), found.child
    tail, beyond = None, None
    if child is not None and found.split:
        end = tree.split(child, found.split)
        path.append(end)
    if child is not None:
        beyond = child, found.num_bytes
        if found.tail:
            tail = TailPage(child.first_page_id, found.tail // TOKEN_BYTES)
    elif end.children:
        wanted = key[found.matched : found.matched + tree.page_bytes]
        near = next(page for page in end.children.neighbours(wanted) if page is not None)
        beyond = end.children[near], found.num_bytes
    tree.lock(end)
    tree.touch(end, clock())
    pages = page_ids(b"".join([node.pages for node in path]))
    num_tokens = (found.matched + found.split) // TOKEN_BYTES
    return Lease(tree, clock, end, tail, num_tokens, pages, key, beyond, root.chain)
