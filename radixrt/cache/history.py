"""What is remembered of pages that were evicted: how often they were used, when they went, why."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.pagehash import UInt64

RECORD: Final = np.dtype(
    [
        ("key", np.uint64),
        ("when", np.float64),
        ("whom", np.int64),
        ("uses", np.uint8),
        ("tier", np.uint8),
    ]
)

TIERS: Final = ("device", "host", "disk", "remote")
"""Names of the tiers, by the number in a record."""

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
        self._mask = np.uint64((1 << max(4, (num_records - 1).bit_length())) - 1)
        self._records = np.zeros(int(self._mask) + 1, RECORD)

    @classmethod
    def for_pages(cls, num_pages: int) -> PageHistory:
        """Return a history for a pool of ``num_pages``."""
        return cls(min(max(2 * num_pages, MIN_RECORDS), MAX_RECORDS))

    @property
    def num_bytes(self) -> int:
        """Memory it takes, from the start to the end."""
        return self._records.nbytes

    def note(
        self, keys: UInt64, uses: bytes | bytearray, *, tier: int, when: float, whom: int
    ) -> None:
        """Remember that pages with these hashes were evicted after ``uses`` uses each."""
        at = self._places(keys)
        records = self._records
        records["key"][at] = keys
        records["when"][at] = when
        records["whom"][at] = whom
        records["uses"][at] = np.frombuffer(uses, np.uint8)
        records["tier"][at] = tier

    def uses(self, keys: UInt64) -> NDArray[np.uint8]:
        """Return how often each page had been used when it went, uint8 [n]; 0: not remembered."""
        at = self._places(keys)
        found = self._records["key"][at] == keys
        uses: NDArray[np.uint8] = np.where(found, self._records["uses"][at], 0).astype(np.uint8)
        return uses

    def evictions(self, keys: UInt64) -> list[Eviction | None]:
        """Return how each page went; None for one that is not remembered."""
        at = self._places(keys)
        found = self._records["key"][at] == keys
        return [
            Eviction(TIERS[int(record["tier"])], float(record["when"]), int(record["whom"]))
            if is_known
            else None
            for record, is_known in zip(self._records[at], found.tolist(), strict=True)
        ]

    def _places(self, keys: UInt64) -> NDArray[np.int64]:
        places: NDArray[np.int64] = ((keys >> np.uint64(20)) & self._mask).astype(np.int64)
        return places
