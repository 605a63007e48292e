"""Short hashes of prefixes, page by page: for statistics and memory of what was, never for hits."""

from __future__ import annotations

import struct
from operator import mul

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15 | 1
_STEP_BACK = pow(_STEP, -1, 1 << 64)
_MIX_INT = 0xBF58476D1CE4E5B9
_MIX = np.uint64(_MIX_INT)
_SHIFT = np.uint64(29)
_FEW = 4
"""Pages up to which a loop is quicker than array operations."""


class PageHash:
    """Chained 64-bit hashes of the pages of a key, as ``encode`` writes it.

    The hash after a page is ``before * step + page`` modulo 2^64, so a whole prompt is hashed by a
    few array operations (about 0.1 ms for 32k tokens). Two prefixes collide with a chance of about
    2^-45: weights of 30 bits and the ids of tokens are numbers that Python multiplies quickly.
    Somebody who wants collisions can make them, which costs statistics and never a token.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        weights = np.random.default_rng(7).integers(1, 1 << 30, page_size, np.uint64)
        self._weights: UInt64 = weights | np.uint64(1)
        self._layout = struct.Struct(f">{page_size}I")
        self._weight_list: list[int] = self._weights.tolist()
        self._forth: UInt64 = np.zeros(0, np.uint64)
        self._back: UInt64 = np.zeros(0, np.uint64)

    def seed(self, namespace: str) -> int:
        """Return the hash before the first page of a namespace, the same in every process."""
        value = 0xCBF29CE484222325
        for byte in namespace.encode("utf-8"):
            value = ((value ^ byte) * 0x100000001B3) & _MASK
        return value

    def chain(self, before: int, key: bytes | bytearray) -> UInt64:
        """Return the hash after each page of ``key``, uint64 [pages]; a last page may be partial.

        ``before`` is the hash of the pages in front.
        """
        if len(key) <= _FEW * 4 * self._page_size:
            return np.array(self.steps(before, key), np.uint64)
        pages = self._pages(key)
        num = len(pages)
        self._grow(num)
        sums = np.cumsum(pages * self._back[:num], dtype=np.uint64)
        sums += np.uint64(before)
        sums *= self._forth[:num]
        return sums

    def steps(self, before: int, key: bytes | bytearray) -> list[int]:
        """``chain`` page by page, as numbers: quicker for a few pages, where arrays cost most."""
        size, hashes = 4 * self._page_size, []
        for at in range(0, len(key), size):
            before = (before * _STEP + self._page(key[at : at + size])) & _MASK
            hashes.append(before)
        return hashes

    def _page(self, page: bytes | bytearray) -> int:
        num = len(page) // 4
        layout = self._layout if num == self._page_size else struct.Struct(f">{num}I")
        total: int = sum(map(mul, layout.unpack(page), self._weight_list))
        if num < self._page_size:
            total += num
        total &= _MASK
        total ^= total >> 29
        total = (total * _MIX_INT) & _MASK
        return total ^ (total >> 29)

    def _pages(self, key: bytes | bytearray) -> UInt64:
        tokens = np.frombuffer(key, ">u4").astype(np.uint64)
        tail = len(tokens) % self._page_size
        full = tokens[: len(tokens) - tail].reshape(-1, self._page_size)
        sums: UInt64 = full @ self._weights
        if tail:
            partial = (tokens[len(tokens) - tail :] * self._weights[:tail]).sum(dtype=np.uint64)
            sums = np.append(sums, partial + np.uint64(tail))
        sums ^= sums >> _SHIFT
        sums *= _MIX
        sums ^= sums >> _SHIFT
        return sums

    def _grow(self, num: int) -> None:
        if num > len(self._forth):
            num = max(256, 2 * num)
            forth, back = _STEP, _STEP_BACK
            self._forth, self._back = np.empty(num, np.uint64), np.empty(num, np.uint64)
            for i in range(num):
                self._forth[i], self._back[i] = forth, back
                forth, back = (forth * _STEP) & _MASK, (back * _STEP_BACK) & _MASK
