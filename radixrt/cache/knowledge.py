"""What a tree tells its policy: pages that are born, used, evicted, at rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from radixrt.cache.history import PageHistory
from radixrt.cache.node import TOKEN_BYTES, Node
from radixrt.cache.pagehash import PageHash, UInt64
from radixrt.cache.reuse import ReuseModel

NO_KEYS: Final[UInt64] = np.zeros(0, np.uint64)


class Knowledge:
    """Keeps the history of evicted pages and the statistics of reuse in step with one tree."""

    def __init__(self, history: PageHistory, reuse: ReuseModel | None, page_size: int) -> None:
        self.hash = PageHash(page_size)
        self.history = history
        self._reuse = reuse
        self._page_bytes = page_size * TOKEN_BYTES

    def born(
        self,
        before: int,
        key: bytes,
        now: float,
        first_page: int,
        watched: dict[int, int],
        keys: UInt64 | None = None,
    ) -> tuple[bytearray, int]:
        """Pages were computed after the prefix of hash ``before``, which has ``first_page`` pages.

        ``keys`` are their hashes, if they are known. Adds those of the sample to ``watched``.
        Returns the uses of each, those before its last eviction included, and the hash at the end.
        """
        if len(key) <= self._page_bytes:
            return self._one_born(before, key, now, first_page, watched)
        if keys is None:
            keys = self.hash.chain(before, key)
        uses = np.minimum(self.history.uses(keys), 254) + np.uint8(1)
        if self._reuse is not None:
            num_full = len(key) // self._page_bytes
            is_watched = self._reuse.is_watched(keys[:num_full])
            if is_watched.any():
                new = keys[:num_full][is_watched].tolist()
                self._reuse.born(new, uses[:num_full][is_watched].tolist(), now)
                numbers = (np.flatnonzero(is_watched) + first_page).tolist()
                watched.update(zip(new, numbers, strict=True))
        return bytearray(uses.tobytes()), int(keys[-1])

    def _one_born(
        self, before: int, key: bytes, now: float, first_page: int, watched: dict[int, int]
    ) -> tuple[bytearray, int]:
        after = self.hash.step(before, key)
        uses = min(self.history.uses_of(after) + 1, 255)
        reuse = self._reuse
        if reuse is not None and len(key) == self._page_bytes and reuse.is_one_watched(after):
            reuse.born([after], [uses], now)
            watched[after] = first_page
        return bytearray((uses,)), after

    def used(
        self, before: int, key: bytes, now: float, *, is_first: bool, known: UInt64 = NO_KEYS
    ) -> tuple[dict[int, int], UInt64]:
        """A request asks for ``key`` behind the root of hash ``before``; returns its watched pages
        with which of its pages they are, and the hashes of all its full pages, of which ``known``
        are the first."""
        num_full = len(key) // self._page_bytes
        if num_full == 0:
            return {}, NO_KEYS
        num_known = len(known)
        if num_known < num_full:
            rest = key[num_known * self._page_bytes : num_full * self._page_bytes]
            if num_known:
                keys = np.concatenate([known, self.hash.chain(int(known[-1]), rest)])
            else:
                keys = self.hash.chain(before, rest)
        else:
            keys = known[:num_full]
        if self._reuse is None:
            return {}, keys
        at = np.flatnonzero(self._reuse.is_watched(keys))
        watched: list[int] = keys[at].tolist()
        if is_first:
            self._reuse.used(watched, now)
        else:
            self._reuse.resumed(watched, now)
        return dict(zip(watched, at.tolist(), strict=True)), keys

    def rests(self, watched: Iterable[int], state: int, now: float) -> None:
        """No request runs on these pages any more."""
        if self._reuse is not None:
            self._reuse.rests(watched, state, now)

    def cut(self, leaf: Node, num_pages: int, eviction: tuple[int, float, int] | None) -> None:
        """The last ``num_pages`` of a leaf are about to go; ``eviction`` (tier, when, for whom) is
        remembered."""
        key = leaf.key[-num_pages * self._page_bytes :]
        if num_pages == 1:
            if eviction is not None:
                self.history.note_one(leaf.chain, leaf.uses[-1], *eviction)
            leaf.chain = self.hash.step_back(leaf.chain, key)
        else:
            before = self.hash.walk_back(leaf.chain, key)
            if eviction is not None:
                keys = self.hash.chain(before, key)
                self.history.note(keys, leaf.uses[-num_pages:], *eviction)
            leaf.chain = before
        del leaf.uses[-num_pages:]

    def keys_of(self, namespace: str, key: bytes) -> UInt64:
        """Return the hash after each page of a key, uint64 [pages]."""
        return self.hash.chain(self.hash.seed(namespace), key)
