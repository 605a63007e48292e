"""What is remembered of pages that were evicted: how often they were used, when they went, why."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.pagehash import UInt64

TIERS: Final = ("device", "host", "disk", "remote")
"""Names of the tiers, by the number in a record."""

_SPARE_BITS = 20
"""The lowest bits of a hash are the poorest ones."""

_FEW = 4
"""Pages up to which a loop is quicker than array operations."""

MIN_RECORDS: Final = 1 << 16
MAX_RECORDS: Final = 1 << 21


class Eviction(NamedTuple):
    """One page's way out: from which tier, when (the cache's clock), to make room for which
    request (its number; 0: nobody's, the cache was flushed)."""

    tier: str
    when: float
    whom: int


class PageHistory:
    """The last evictions, by page hash. 26 bytes a record, all of them taken at the start.

    A record has one place, given by its key: a newer one that needs the place takes it. With
    ``num_records`` places and n pages evicted since, a record is still there with probability
    exp(-n / num_records). ``for_pages`` takes two to four places a page of the pool, at least
    65,536 (1.6 MiB) and at most 2,097,152 (52 MiB).
    """

    def __init__(self, num_records: int) -> None:
        num = 1 << max(4, (num_records - 1).bit_length())
        self._mask = num - 1
        self._keys: UInt64 = np.zeros(num, np.uint64)
        self._when = np.zeros(num, np.float64)
        self._whom = np.zeros(num, np.int64)
        self._uses = np.zeros(num, np.uint8)
        self._tier = np.zeros(num, np.uint8)

    @classmethod
    def for_pages(cls, num_pages: int) -> PageHistory:
        """Return a history for a pool of ``num_pages``."""
        return cls(min(max(2 * num_pages, MIN_RECORDS), MAX_RECORDS))

    @property
    def num_bytes(self) -> int:
        """Memory it takes, from the start to the end."""
        arrays = (self._keys, self._when, self._whom, self._uses, self._tier)
        return sum(array.nbytes for array in arrays)

    def note(
        self, keys: UInt64, uses: bytes | bytearray, tier: int, when: float, whom: int
    ) -> None:
        """Remember that pages with these hashes were evicted after ``uses`` uses each."""
        at = self._places(keys)
        self._keys[at] = keys
        self._when[at] = when
        self._whom[at] = whom
        self._uses[at] = np.frombuffer(uses, np.uint8)
        self._tier[at] = tier

    def note_one(self, key: int, uses: int, tier: int, when: float, whom: int) -> None:
        """``note`` for one page."""
        at = (key >> _SPARE_BITS) & self._mask
        self._keys[at] = key
        self._when[at] = when
        self._whom[at] = whom
        self._uses[at] = uses
        self._tier[at] = tier

    def uses(self, keys: UInt64) -> NDArray[np.uint8]:
        """Return how often each page had been used when it went, uint8 [n]; 0: not remembered."""
        at = self._places(keys)
        uses: NDArray[np.uint8] = np.where(self._keys[at] == keys, self._uses[at], 0)
        return uses.astype(np.uint8)

    def uses_of(self, key: int) -> int:
        """``uses`` of one page."""
        at = (key >> _SPARE_BITS) & self._mask
        return int(self._uses[at]) if int(self._keys[at]) == key else 0

    def evictions(self, keys: UInt64) -> list[Eviction | None]:
        """Return how each page went; None for one that is not remembered."""
        if len(keys) <= _FEW:
            return [self._eviction_of(key) for key in keys.tolist()]
        at = self._places(keys)
        found = self._keys[at] == keys
        if not found.any():  # a new prompt, the usual case
            return [None] * len(keys)
        return [
            Eviction(TIERS[tier], when, whom) if is_known else None
            for is_known, tier, when, whom in zip(
                found.tolist(),
                self._tier[at].tolist(),
                self._when[at].tolist(),
                self._whom[at].tolist(),
                strict=True,
            )
        ]

    def _eviction_of(self, key: int) -> Eviction | None:
        at = (key >> _SPARE_BITS) & self._mask
        if int(self._keys[at]) != key:
            return None
        return Eviction(TIERS[self._tier[at]], float(self._when[at]), int(self._whom[at]))

    def _places(self, keys: UInt64) -> NDArray[np.int64]:
        places: NDArray[np.int64] = (keys >> np.uint64(_SPARE_BITS)).astype(np.int64)
        places &= self._mask
        return places
