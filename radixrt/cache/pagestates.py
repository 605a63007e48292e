"""What is going on with each page of a pool that transfers read and write."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.pages import PageAllocator
from radixrt.errors import InvalidArgument

Int32 = NDArray[np.int32]


class PageState(IntEnum):
    """The life of a page on one tier.

        ABSENT ── take ──► RESERVED ── fill ──► FILLING ── publish ──► READY
           ▲                  │                    │                     │ give
           └──── give ────────┴──── give ──────────┘◄── last reader ── DRAINING

    READY pages have any number of readers, FILLING ones exactly one writer. A page that is given
    back while it has readers drains: it is free only after the last of them. The give of a READY
    page without readers makes it ABSENT at once.
    """

    ABSENT = 0
    RESERVED = 1
    FILLING = 2
    READY = 3
    DRAINING = 4


class TransferPages(PageAllocator):
    """An allocator whose pages are read and written by transfers, and that knows their states.

    ``take`` and ``give`` are the allocator's, except that ``give`` never waits: pages with readers
    leave the caller at once and become free when ``read_done`` is called for the last reader.
    """

    def __init__(self, num_pages: int) -> None:
        super().__init__(num_pages)
        self.num_draining = 0
        self._state = np.full(num_pages, PageState.ABSENT, np.uint8)
        self._readers: Int32 = np.zeros(num_pages, np.int32)

    def take(self, n: int) -> Int32:
        """Return ``n`` RESERVED pages; see ``PageAllocator.take``."""
        pages = super().take(n)
        self._state[pages] = PageState.RESERVED
        return pages

    def fill(self, pages: Int32) -> None:
        """A transfer starts to write ``pages``, which are RESERVED."""
        self._expect(pages, PageState.RESERVED, "take pages before they are filled")
        self._state[pages] = PageState.FILLING

    def publish(self, pages: Int32) -> None:
        """The writer of ``pages`` is done: they may be read."""
        self._expect(pages, PageState.FILLING, "fill pages before they are published")
        self._state[pages] = PageState.READY

    def read(self, pages: Int32) -> None:
        """Count a reader of ``pages``, which are READY and distinct."""
        self._expect(pages, PageState.READY, "only published pages can be read")
        self._readers[pages] += 1

    def read_done(self, pages: Int32) -> None:
        """A reader counted by ``read`` is done; frees what has drained."""
        if (self._readers[pages] < 1).any():
            raise InvalidArgument("pages", pages, "read_done once for each read")
        self._readers[pages] -= 1
        drained = pages[(self._state[pages] == PageState.DRAINING) & (self._readers[pages] == 0)]
        self.num_draining -= len(drained)
        self._free(drained)

    def give(self, pages: Int32) -> None:
        """Take ``pages`` back; those with readers drain first. See ``PageAllocator.give``."""
        if len(pages) == 0:
            return
        self._check_numbers(pages)
        states = self._state[pages]
        if (states == PageState.DRAINING).any():
            raise InvalidArgument("pages", pages, "a draining page was given back already")
        busy = (states == PageState.READY) & (self._readers[pages] > 0)
        if busy.any():
            draining = pages[busy]
            self._state[draining] = PageState.DRAINING
            self.num_draining += len(draining)
            pages = pages[~busy]
        self._free(pages)

    def give_one(self, page: int) -> None:
        """``give`` for one page."""
        self.give(np.array([page], np.int32))

    def states(self, pages: Int32) -> NDArray[np.uint8]:
        """Return the ``PageState`` of each of ``pages``."""
        return self._state[pages].copy()

    def num_readers(self, pages: Int32) -> Int32:
        """Return how many readers each of ``pages`` has."""
        return self._readers[pages].copy()

    def _free(self, pages: Int32) -> None:
        super().give(pages)
        self._state[pages] = PageState.ABSENT

    def _expect(self, pages: Int32, state: PageState, way_out: str) -> None:
        others = pages[self._state[pages] != state]
        if len(others):
            found = PageState(int(self._state[others[0]])).name
            raise InvalidArgument("pages", f"{others} ({found})", way_out)
