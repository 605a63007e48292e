"""When pages move between the tiers, and how much did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Refusal = Literal["", "not_worth", "timeout", "corrupt", "failed"]
"""Why known tokens were computed all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierPolicy:
    """When pages move.

    ``write_through``     copy to the host what requests have computed, when the link is idle
    ``store_on``          copy to the stores what was seen "twice", "once" or, with "keep", only
                          what ``keep`` names
    ``max_copy_pages``    pages that are copied to the host at a time: they are locked meanwhile
    ``max_puts``          puts that a store works on at a time
    ``fetch_deadline_s``  longest time that a request waits for a store
    ``min_load_tokens``   fewer tokens are computed rather than loaded or fetched
    ``always_load``       do not ask what is cheaper
    """

    write_through: bool = True
    store_on: Literal["keep", "twice", "once"] = "twice"
    max_copy_pages: int = 256
    max_puts: int = 4
    fetch_deadline_s: float = 5.0
    min_load_tokens: int = 1
    always_load: bool = False


@dataclass(slots=True)
class HiCacheCounters:
    """Totals. Pages, unless the name says otherwise.

    ``*_fetches`` count fetches from stores by how they ended, ``coalesced_fetches`` requests that
    waited for somebody else's.
    """

    backed_up: int = 0
    loaded: int = 0
    fetched: int = 0
    stored: int = 0
    not_worth: int = 0
    fetches: int = 0
    coalesced_fetches: int = 0
    late_fetches: int = 0
    failed_fetches: int = 0
    failed_backups: int = 0
    failed_stores: int = 0
