"""What the cache has done so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CacheCounters:
    """Totals since the cache was made.

    ``acquired``          leases
    ``asked_tokens``      tokens given to ``acquire``
    ``hit_tokens``        of these, tokens it found, the tail included
    ``inserted_pages``    pages that ``extend`` put into the tree
    ``duplicate_pages``   pages that ``extend`` left to the caller
    ``superseded_pages``  partial pages freed because a longer one came
    ``evicted_pages``     pages given back by ``evict``
    """

    acquired: int = 0
    asked_tokens: int = 0
    hit_tokens: int = 0
    inserted_pages: int = 0
    duplicate_pages: int = 0
    superseded_pages: int = 0
    evicted_pages: int = 0
