"""A dict that also knows the order of its keys."""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import itemgetter
from typing import TypeVar

K = TypeVar("K", bound=bytes | tuple[int, float, int])
V = TypeVar("V")

_BLOCK_LEN = 512
_last_key = itemgetter(-1)


class SortedDict(dict[K, V]):
    """A dict with its keys in sorted blocks, for the first key and the neighbours of a key.

    Lookup is the dict's. ``d[key] = value`` and ``del d[key]`` bisect and move at most one block of
    keys, so they stay at microseconds for a million entries and nothing stale is ever left behind.
    Use only these two to change it.
    """

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[list[K]] = []

    def __setitem__(self, key: K, value: V) -> None:
        if key not in self:
            self._insert(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: K) -> None:
        super().__delitem__(key)
        blocks = self._blocks
        if key == blocks[0][0]:  # as all that goes in order: no key but this one is looked at
            at = index = 0
        else:
            at = bisect_left(blocks, key, key=_last_key)
            index = bisect_left(blocks[at], key)
        block = blocks[at]
        del block[index]
        if not block:
            del blocks[at]

    def first(self) -> V | None:
        """Return the value of the smallest key; None when empty."""
        return self[self._blocks[0][0]] if self._blocks else None

    def first_key(self) -> K | None:
        """Return the smallest key; None when empty."""
        return self._blocks[0][0] if self._blocks else None

    def neighbours(self, key: K) -> tuple[K | None, K | None]:
        """Return the last key below ``key`` and the first key at or above it."""
        blocks = self._blocks
        at = bisect_left(blocks, key, key=_last_key)
        if at == len(blocks):
            return (blocks[-1][-1] if blocks else None), None
        block = blocks[at]
        index = bisect_left(block, key)
        if index:
            return block[index - 1], block[index]
        return (blocks[at - 1][-1] if at else None), block[0]

    def sorted_keys(self) -> list[K]:
        """Return all keys in order, as the blocks hold them."""
        return [key for block in self._blocks for key in block]

    def _insert(self, key: K) -> None:
        blocks = self._blocks
        if not blocks:
            blocks.append([key])
            return
        at = min(bisect_left(blocks, key, key=_last_key), len(blocks) - 1)
        block = blocks[at]
        insort(block, key)
        if len(block) > _BLOCK_LEN:
            blocks.insert(at + 1, block[_BLOCK_LEN // 2 :])
            del block[_BLOCK_LEN // 2 :]
