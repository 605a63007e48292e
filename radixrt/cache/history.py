"""What is remembered of pages that were evicted: how often they were used, when they went, why."""

from __future__ import annotations

import struct
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

_RECORD: Final = struct.Struct("@QdqBB")
_TYPE: Final = np.dtype(
    [("key", "u8"), ("when", "f8"), ("whom", "i8"), ("uses", "u1"), ("tier", "u1")]
)
"""The same for one record and for many: they lie apart, so that each is one place in memory."""

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
        self._records = np.empty(num, _TYPE)
        self._records[:] = 0  # touches the memory, which evictions need not do then
        self._bytes = self._records.view(np.uint8).data

    @classmethod
    def for_pages(cls, num_pages: int) -> PageHistory:
        """Return a history for a pool of ``num_pages``."""
        return cls(min(max(2 * num_pages, MIN_RECORDS), MAX_RECORDS))

    @property
    def num_bytes(self) -> int:
        """Memory it takes, from the start to the end."""
        return self._records.nbytes

    def note(
        self, keys: UInt64, uses: bytes | bytearray, tier: int, when: float, whom: int
    ) -> None:
        """Remember that pages with these hashes were evicted after ``uses`` uses each."""
        at, records = self._places(keys), self._records
        records["key"][at] = keys
        records["when"][at] = when
        records["whom"][at] = whom
        records["uses"][at] = np.frombuffer(uses, np.uint8)
        records["tier"][at] = tier

    def note_one(self, key: int, uses: int, tier: int, when: float, whom: int) -> None:
        """``note`` for one page."""
        at = (key >> _SPARE_BITS) & self._mask
        _RECORD.pack_into(self._bytes, at * _RECORD.size, key, when, whom, uses, tier)

    def uses(self, keys: UInt64) -> NDArray[np.uint8]:
        """Return how often each page had been used when it went, uint8 [n]; 0: not remembered."""
        found = self._records[self._places(keys)]
        uses: NDArray[np.uint8] = np.where(found["key"] == keys, found["uses"], np.uint8(0))
        return uses

    def uses_of(self, key: int) -> int:
        """``uses`` of one page."""
        known, _, _, uses, _ = self._record_of(key)
        return uses if known == key else 0

    def evictions(self, keys: UInt64) -> list[Eviction | None]:
        """Return how each page went; None for one that is not remembered."""
        if len(keys) <= _FEW:
            return [self._eviction_of(key) for key in keys.tolist()]
        records = self._records[self._places(keys)]
        found = records["key"] == keys
        if not found.any():  # a new prompt, the usual case
            return [None] * len(keys)
        return [
            Eviction(TIERS[tier], when, whom) if is_known else None
            for is_known, (_, when, whom, _, tier) in zip(
                found.tolist(), records.tolist(), strict=True
            )
        ]

    def _eviction_of(self, key: int) -> Eviction | None:
        known, when, whom, _, tier = self._record_of(key)
        return Eviction(TIERS[tier], when, whom) if known == key else None

    def _record_of(self, key: int) -> tuple[int, float, int, int, int]:
        at = (key >> _SPARE_BITS) & self._mask
        return _RECORD.unpack_from(self._bytes, at * _RECORD.size)

    def _places(self, keys: UInt64) -> NDArray[np.int64]:
        places: NDArray[np.int64] = (keys >> np.uint64(_SPARE_BITS)).astype(np.int64)
        places &= self._mask
        return places
