"""A node of the radix tree, and the form its tokens are kept in."""

from __future__ import annotations

import struct
import sys
from typing import Final

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.pagehash import UInt64
from radixrt.cache.sorted_dict import SortedDict

Int32 = NDArray[np.int32]
TOKEN_BYTES = 4
PAGE_ID_BYTES = 4
HASH_BYTES = 8
_HASH: Final = struct.Struct("@Q")
_PAGE_ID: Final = struct.Struct("@i")
Place = tuple[int, float, int]
_FEW = 64
"""Tokens up to which comparing numbers is quicker than comparing arrays."""
NEVER = float("-inf")


class Node:
    """A run of tokens and the pages that hold their K and V.

    ``key``       the run's tokens as ``encode`` writes them
    ``pages``     its page numbers, native int32; owned by the tree
    ``end``       bytes of key from the root to the run's end; of a root 0, of a node that has left
                  the tree to where its run began
    ``least_end`` where the run ended after it had been cut most: what is behind it may have been
                  something else before
    ``children``  the runs that continue it, by their first page of key (a partial page: all of it)
    ``locks``     held leases that end here, and children with a lock
    ``parks``     parked leases that ended here, and children with one
    ``used``      clock time of the last use that ended here, a bias included
    ``is_ended``  its program has ended and nobody else has used it since
    ``is_branch`` more than one run has continued it
    ``place``     its key in the eviction order; None while it is not in it
    ``version``   grows with every change of what a ``Match`` says that ends here or within the run
    ``backed``    pages from the run's start that the tier below is known to have had: a hint for
                  what it costs to lose them, not a promise

    With a policy that learns also:

    ``uses``        how often each page was used, a byte a page, 255 at most
    ``hashes``      of the prefix up to the end of each page (``PageHash``), native uint64; of a
                    root of what the namespace begins with
    ``state``       what is expected of the idle branch whose parked lease is here
    ``held_until``  clock time until which a program asked to keep it, with ``priority``

    A node is full (a multiple of the page size) or *partial*: a leaf of one page, not filled.
    Growing, cutting the end and cutting the front of a bytearray are cheap at any length.
    Splitting and merging keep the identity of the lower node, the one leases end at.
    """

    __slots__ = (
        "backed",
        "children",
        "end",
        "hashes",
        "held_until",
        "is_branch",
        "is_ended",
        "key",
        "least_end",
        "locks",
        "pages",
        "parent",
        "parks",
        "place",
        "priority",
        "serial",
        "state",
        "used",
        "uses",
        "version",
    )

    def __init__(
        self, serial: int, parent: Node | None, key: bytearray, pages: bytearray, used: float
    ) -> None:
        self.serial = serial
        self.parent = parent
        self.key = key
        self.pages = pages
        self.used = used
        self.end: int = 0 if parent is None else parent.end + len(key)
        self.least_end = sys.maxsize
        self.children: SortedDict[bytes, Node] = NO_CHILDREN
        self.locks = 0
        self.parks = 0
        self.is_ended = False
        self.is_branch = False
        self.place: Place | None = None
        self.version = 0
        self.backed = 0
        self.uses = bytearray()
        self.hashes = bytearray()
        self.state = 0
        self.held_until = NEVER
        self.priority = 0

    def adopt(self, first_page: bytes, child: Node) -> None:
        """Put ``child`` below this node, in place of one with the same first page of key."""
        if self.children is NO_CHILDREN:
            self.children = SortedDict()
        self.children[first_page] = child

    @property
    def num_pages(self) -> int:
        """Pages of the run."""
        return len(self.pages) // PAGE_ID_BYTES

    @property
    def first_page_id(self) -> int:
        """The number of the run's first page."""
        return int(_PAGE_ID.unpack_from(self.pages)[0])

    @property
    def num_tokens(self) -> int:
        """Tokens of the run."""
        return len(self.key) // TOKEN_BYTES

    @property
    def chain(self) -> int:
        """The hash of the prefix up to the run's end; 0 without a policy that learns."""
        hashes = self.hashes
        if not hashes:
            return 0
        last: int = _HASH.unpack_from(hashes, len(hashes) - HASH_BYTES)[0]
        return last

    def last_hashes(self, num_pages: int) -> UInt64:
        """Return a copy of the last ``num_pages`` of ``hashes``, uint64 [num_pages]."""
        return np.frombuffer(bytes(self.hashes[-num_pages * HASH_BYTES :]), np.uint64)

    @property
    def is_dead(self) -> bool:
        """Whether it has left the tree; its parent still leads to what is left of its path."""
        return self.parent is not None and not self.pages


# Most nodes are leaves: one empty dict for all of them spares memory and garbage collection.
NO_CHILDREN: Final[SortedDict[bytes, Node]] = SortedDict()


def encode(token_ids: Int32) -> bytes:
    """Return the tokens as big-endian words: the order of bytes is then the order of tokens, and a
    longest common prefix is found next door in sorted order."""
    return token_ids.astype(">u4").tobytes()


def decode(key: bytes | bytearray) -> Int32:
    """Return the tokens of a key, int32."""
    return np.frombuffer(key, ">u4").astype(np.int32)


def common_prefix(key: bytes, start: int, other: bytes | bytearray) -> int:
    """Return how many bytes of ``key[start:]`` and ``other`` agree, in whole tokens."""
    num = min(len(key) - start, len(other)) // TOKEN_BYTES
    if num <= _FEW:
        return _short_prefix(key[start : start + num * TOKEN_BYTES], other)
    ours = np.frombuffer(key, np.uint32, num, start)
    differs = ours != np.frombuffer(other, np.uint32, num)
    first = int(differs.argmax()) if num else 0
    return TOKEN_BYTES * (first if num and differs[first] else num)


def _short_prefix(key: bytes, other: bytes | bytearray) -> int:
    size = len(key)
    differs = int.from_bytes(key, "big") ^ int.from_bytes(other[:size], "big")
    return (8 * size - differs.bit_length()) // (8 * TOKEN_BYTES) * TOKEN_BYTES


def page_ids(pages: bytes | bytearray) -> Int32:
    """Return the page numbers in ``pages`` as an array of their own, int32."""
    return np.frombuffer(pages, np.int32).copy()
