"""Which KV pages are free."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radixrt.errors import InvalidArgument, OutOfPages

Int32 = NDArray[np.int32]


class PageAllocator:
    """Hands out page numbers ``1 .. num_pages - 1``; page 0 is the padding target and never leaves.

    A page is free, or owned by whoever took it. The last page given back is the first to be taken
    again, so a small working set stays in the caches.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise InvalidArgument(
                "num_pages", num_pages, "give at least 1 page (page 0 is padding)"
            )
        self.num_pages = num_pages
        self.num_free = num_pages - 1
        self._stack: Int32 = np.arange(num_pages - 1, 0, -1, dtype=np.int32)
        self._is_free = np.ones(num_pages, dtype=np.bool_)
        self._is_free[0] = False
        self._rank: Int32 = np.zeros(num_pages, dtype=np.int32)

    @property
    def num_usable(self) -> int:
        """Pages that can be handed out at all."""
        return self.num_pages - 1

    def take(self, n: int) -> Int32:
        """Return ``n`` pages, int32 [n], owned by the caller from now on.

        Raises ``OutOfPages`` and takes none when fewer are free.
        """
        if n < 0:
            raise InvalidArgument("n", n, "take 0 or more pages")
        if n > self.num_free:
            raise OutOfPages(f"{n} pages asked for, {self.num_free} of {self.num_usable} are free")
        rest = self.num_free - n
        pages = self._stack[rest : self.num_free][::-1].copy()
        self.num_free = rest
        self._is_free[pages] = False
        return pages

    def take_one(self) -> int:
        """``take`` for one page."""
        if not self.num_free:
            raise OutOfPages(f"a page asked for, 0 of {self.num_usable} are free")
        self.num_free -= 1
        page = int(self._stack[self.num_free])
        self._is_free[page] = False
        return page

    def give(self, pages: Int32) -> None:
        """Take ``pages`` (int [n]) back from their owner.

        Raises ``InvalidArgument`` and takes none when one of them is not a page, is free already
        or comes twice.
        """
        n = len(pages)
        if n == 0:
            return
        if n == 1:
            self._free_one(int(pages[0]))
            return
        self._check_numbers(pages)
        if self._is_free[pages].any():
            free = pages[self._is_free[pages]]
            raise InvalidArgument("pages", free, "these are free already: give a page back once")
        order = np.arange(n, dtype=np.int32)
        self._rank[pages] = order
        if (self._rank[pages] != order).any():
            raise InvalidArgument("pages", pages, "a page comes twice: give it back once")
        self._stack[self.num_free : self.num_free + n] = pages[::-1]
        self.num_free += n
        self._is_free[pages] = True

    def give_one(self, page: int) -> None:
        """``give`` for one page."""
        self._free_one(page)

    def _check_numbers(self, pages: Int32) -> None:
        if pages.min() < 1 or pages.max() >= self.num_pages:
            raise InvalidArgument("pages", pages, f"page numbers are 1 .. {self.num_pages - 1}")

    def _free_one(self, page: int) -> None:
        if not 1 <= page < self.num_pages:
            raise InvalidArgument("pages", page, f"page numbers are 1 .. {self.num_pages - 1}")
        if self._is_free[page]:
            raise InvalidArgument("pages", page, "it is free already: give a page back once")
        self._stack[self.num_free] = page
        self.num_free += 1
        self._is_free[page] = True

    def sort(self) -> None:
        """Hand out neighbours one after the other again, from the lowest on.

        An H200 reads pages faster that lie side by side.
        """
        self._stack[: self.num_free] = np.sort(self._stack[: self.num_free])[::-1]

    def is_free(self, pages: Int32) -> NDArray[np.bool_]:
        """Return for each of ``pages`` whether nobody owns it, bool [n]."""
        return self._is_free[pages]
