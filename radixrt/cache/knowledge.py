"""What a tree tells its policy: pages that are born, used, evicted, at rest."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from radixrt.cache.history import PageHistory
from radixrt.cache.node import HASH_BYTES, TOKEN_BYTES, Node
from radixrt.cache.pagehash import PageHash, UInt64
from radixrt.cache.reuse import ReuseModel

NO_KEYS: Final[UInt64] = np.zeros(0, np.uint64)

FEW_PAGES: Final = 4
"""Pages up to which a loop is quicker than array operations."""


class Known(NamedTuple):
    """The hashes of the first full pages of a text, uint64 [n], and its watched pages by hash, with
    their numbers (some may lie behind those n)."""

    keys: UInt64
    watched: dict[int, int]


UNKNOWN: Final = Known(NO_KEYS, {})


class Knowledge:
    """Keeps the history of evicted pages and the statistics of reuse in step with one tree."""

    def __init__(self, history: PageHistory, reuse: ReuseModel | None, page_size: int) -> None:
        self.hash = PageHash(page_size)
        self.history = history
        self._reuse = reuse
        self._page_bytes = page_size * TOKEN_BYTES

    def seed(self, namespace: str) -> bytearray:
        """Return the hash before a namespace's first page, native uint64."""
        return bytearray(struct.pack("=Q", self.hash.seed(namespace)))

    def born(
        self,
        before: int,
        key: bytes,
        now: float,
        first_page: int,
        watched: dict[int, int],
        keys: UInt64 | None = None,
    ) -> tuple[bytearray, bytes]:
        """Pages were computed after the prefix of hash ``before``, which has ``first_page`` pages.

        ``keys`` are their hashes, if they are known. Adds those of the sample to ``watched``.
        Returns the uses of each, those before its last eviction included, a byte a page, and the
        hash after each, native uint64.
        """
        if len(key) <= FEW_PAGES * self._page_bytes:
            hashes = self.hash.steps(before, key) if keys is None else keys.tolist()
            uses = self._few_born(hashes, len(key), now, first_page, watched)
            return uses, struct.pack(f"={len(hashes)}Q", *hashes)
        if keys is None:
            keys = self.hash.chain(before, key)
        counts = np.minimum(self.history.uses(keys), 254) + np.uint8(1)
        if self._reuse is not None:
            num_full = len(key) // self._page_bytes
            is_watched = self._reuse.is_watched(keys[:num_full])
            if is_watched.any():
                new = keys[:num_full][is_watched].tolist()
                self._reuse.born(new, counts[:num_full][is_watched].tolist(), now)
                numbers = (np.flatnonzero(is_watched) + first_page).tolist()
                watched.update(zip(new, numbers, strict=True))
        return bytearray(counts.tobytes()), keys.tobytes()

    def _few_born(
        self,
        hashes: list[int],
        num_bytes: int,
        now: float,
        first_page: int,
        watched: dict[int, int],
    ) -> bytearray:
        uses, reuse = bytearray(), self._reuse
        for page, key in enumerate(hashes):
            uses.append(min(self.history.uses_of(key) + 1, 255))
            is_full = (page + 1) * self._page_bytes <= num_bytes
            if reuse is not None and is_full and reuse.is_one_watched(key):
                reuse.born([key], [uses[-1]], now)
                watched[key] = first_page + page
        return uses

    def used(
        self, before: int, key: bytes, now: float, *, is_first: bool, known: Known = UNKNOWN
    ) -> tuple[dict[int, int], UInt64]:
        """A request asks for ``key`` behind the root of hash ``before``; returns its watched pages
        with which of its pages they are, and the hashes of all its full pages. ``known`` is what an
        earlier call returned of a text with the same first pages."""
        num_full = len(key) // self._page_bytes
        if num_full == 0:
            return {}, NO_KEYS
        if len(known.keys):
            watched, keys = self._continued(key, num_full, known)
        else:
            watched, keys = self._all_of(before, key, num_full)
        if self._reuse is not None:
            if is_first:
                self._reuse.used([*watched], now)
            else:
                self._reuse.resumed(watched, now)
        return watched, keys

    def _all_of(self, before: int, key: bytes, num_full: int) -> tuple[dict[int, int], UInt64]:
        keys = self.hash.chain(before, key[: num_full * self._page_bytes])
        if self._reuse is None:
            return {}, keys
        if num_full <= FEW_PAGES:
            is_watched = self._reuse.is_one_watched
            return {k: page for page, k in enumerate(keys.tolist()) if is_watched(k)}, keys
        at = np.flatnonzero(self._reuse.is_watched(keys))
        return dict(zip(keys[at].tolist(), at.tolist(), strict=True)), keys

    def _continued(self, key: bytes, num_full: int, known: Known) -> tuple[dict[int, int], UInt64]:
        keys, num_known = known.keys[:num_full], len(known.keys)
        watched = {hashed: page for hashed, page in known.watched.items() if page < len(keys)}
        if num_known < num_full:
            rest = key[num_known * self._page_bytes : num_full * self._page_bytes]
            more, others = self._all_of(int(keys[-1]), rest, num_full - num_known)
            watched |= {hashed: num_known + page for hashed, page in more.items()}
            keys = np.concatenate([keys, others])
        return watched, keys

    def rests(self, watched: Iterable[int], state: int, now: float) -> None:
        """No request runs on these pages any more."""
        if self._reuse is not None:
            self._reuse.rests(watched, state, now)

    def cut(self, leaf: Node, num_pages: int, eviction: tuple[int, float, int] | None) -> None:
        """The last ``num_pages`` of a leaf are about to go; ``eviction`` (tier, when, for whom) is
        remembered."""
        if eviction is not None:
            if num_pages == 1:
                self.history.note_one(leaf.chain, leaf.uses[-1], *eviction)
            else:
                keys = leaf.last_hashes(num_pages)
                self.history.note(keys, leaf.uses[-num_pages:], *eviction)
        del leaf.uses[-num_pages:]
        del leaf.hashes[-num_pages * HASH_BYTES :]

    def keys_of(self, namespace: str, key: bytes) -> UInt64:
        """Return the hash after each page of a key, uint64 [pages]."""
        return self.hash.chain(self.hash.seed(namespace), key)
