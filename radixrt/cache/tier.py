"""What every tier below the device has in common: runs of pages, tickets, and the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.pagekeys import extend_keys, page_keys

Int32 = NDArray[np.int32]

Outcome = Literal["ok", "missing", "corrupt", "timeout", "full", "failed", "closed"]
"""How a transfer ended: all pages; fewer, because the tier had no more; a checksum or a header that
is wrong; the deadline; no room in the tier; an error of the medium; the tier was closed."""


@dataclass(frozen=True, slots=True)
class PageRun:
    """Consecutive pages of one sequence: what tiers move.

    ``token_ids`` int32 [n] is the sequence from its first token; the run is its full pages
    ``[first, last)``. ``keys`` are the chained keys of the pages ``[0, last)`` where they are
    known already; ``with_keys`` derives them, about a microsecond a page.
    """

    namespace: str
    token_ids: Int32
    page_size: int
    first: int
    last: int
    keys: tuple[bytes, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        assert 0 <= self.first <= self.last <= len(self.token_ids) // self.page_size, self

    @property
    def num_pages(self) -> int:
        """Pages of the run."""
        return self.last - self.first

    def part(self, first: int, last: int) -> PageRun:
        """Return the pages ``[first, last)`` of the same sequence."""
        return PageRun(
            self.namespace, self.token_ids, self.page_size, first, last, self.keys[:last]
        )

    def with_keys(self) -> PageRun:
        """Return the run with ``keys`` for all pages up to its last."""
        if len(self.keys) >= self.last:
            return self
        if self.keys:
            start = len(self.keys) * self.page_size
            more = self.token_ids[start : self.last * self.page_size]
            keys = self.keys + extend_keys(self.keys[-1], more, self.page_size)
        else:
            tokens = self.token_ids[: self.last * self.page_size]
            keys = page_keys(self.namespace, tokens, self.page_size)
        return PageRun(self.namespace, self.token_ids, self.page_size, self.first, self.last, keys)

    def tokens_of(self, page: int) -> Int32:
        """Return the tokens of one page, int32 [page_size]."""
        return self.token_ids[page * self.page_size : (page + 1) * self.page_size]


class Completion(NamedTuple):
    """The end of one transfer.

    ``num_pages`` leading pages of the run were moved; what lies behind was not, or is not to be
    trusted. Exactly one completion comes for every ticket, also after a deadline and after
    ``close``: only then may the pages of the pool be used for something else.
    """

    ticket: int
    outcome: Outcome
    num_pages: int
    num_bytes: int
    seconds: float


@dataclass(slots=True)
class TierStats:
    """Totals of one tier; pages, unless the name says otherwise.

    ``capacity`` 0 is unknown. ``corrupt`` and ``failed`` count pages given up for that reason,
    ``timeouts`` and ``refused`` transfers.
    """

    capacity: int = 0
    ready: int = 0
    written: int = 0
    read: int = 0
    evicted: int = 0
    corrupt: int = 0
    failed: int = 0
    timeouts: int = 0
    refused: int = 0
    bytes_written: int = 0
    bytes_read: int = 0


class Tier(Protocol):
    """A place for pages below another one.

    ``pages`` are page numbers of the pool *above*: the device's pool for the host tier, the host's
    pool for disk and remote. All methods are called by the cache's thread and return at once;
    transfers go on elsewhere and end in a ``Completion``, by their deadline or soon after it. From
    the call to the completion the tier reads (``put``) or writes (``get``) these pages, and nobody
    else may write them. Everything may be called twice with the same arguments: a put of what is
    there and a drop of what is not are successes.
    """

    name: str
    is_exact: bool
    """Whether ``probe`` tells what is there; else, where only asking tells, what may be."""

    def probe(self, run: PageRun) -> int:
        """Return how many leading pages of the run the tier has ready. Changes nothing."""
        ...

    def get(self, run: PageRun, pages: Int32, deadline: float) -> int:
        """Start reading the run into ``pages`` (int32 [num_pages]); return the ticket."""
        ...

    def put(self, run: PageRun, pages: Int32, deadline: float) -> int:
        """Start storing the run from ``pages`` (int32 [num_pages]); return the ticket.

        The pages before the run were put earlier; a tier that lacks them may store them or not.
        """
        ...

    def poll(self) -> Sequence[Completion]:
        """Return the transfers that have ended since the last call."""
        ...

    def drop(self, run: PageRun) -> None:
        """Forget the pages of the run; transfers that read them end as they would have."""
        ...

    def stats(self) -> TierStats:
        """Return totals."""
        ...

    def fence(self, timeout_s: float) -> bool:
        """Wait until everything put before survives what the tier survives; False when it took
        longer. The one call that blocks."""
        ...

    def close(self) -> None:
        """Stop, and end what is under way as ``closed``; idempotent."""
        ...
