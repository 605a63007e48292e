"""A page outside of memory: a header that says whose it is, and its bytes; both checksummed."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.pagekeys import KEY_BYTES, root_key
from radixrt.cache.tier import PageRun

MAGIC = b"RXPG"
VERSION = 1
ALIGNMENT = 64

# magic, version, tokens, payload bytes, payload checksum, namespace, key, parent's key, layout
_HEAD = struct.Struct(f"<4sHHII{KEY_BYTES}s{KEY_BYTES}s{KEY_BYTES}s{KEY_BYTES}s")
_CHECKSUM = struct.Struct("<I")

Flaw = Literal["", "short", "magic", "version", "header", "layout", "identity", "payload"]
"""What is wrong with a record; nothing if empty."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The form of all records of a tier: ``page_size`` tokens and ``page_bytes`` bytes each;
    ``name`` (16 bytes) tells what the bytes mean."""

    page_size: int
    page_bytes: int
    name: bytes = bytes(KEY_BYTES)

    @property
    def header_bytes(self) -> int:
        """Bytes of a header: a multiple of ``ALIGNMENT``."""
        used = _HEAD.size + 4 * self.page_size + _CHECKSUM.size
        return -(-used // ALIGNMENT) * ALIGNMENT

    @property
    def record_bytes(self) -> int:
        """Bytes of a header and a page: a multiple of ``ALIGNMENT``."""
        return self.header_bytes + -(-self.page_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose page it is: enough to rebuild a tree from records alone."""

    namespace: bytes
    key: bytes
    parent: bytes
    tokens: bytes
    """Little-endian int32."""

    def token_ids(self) -> NDArray[np.int32]:
        """Return the page's tokens, int32."""
        return np.frombuffer(self.tokens, "<i4").astype(np.int32)


def identity(run: PageRun, page: int) -> Identity:
    """Return whose page the ``page``-th of a run with keys is."""
    root = root_key(run.namespace)
    parent = run.keys[page - 1] if page else root
    return Identity(root, run.keys[page], parent, run.tokens_of(page).astype("<i4").tobytes())


def pack_header(layout: Layout, whose: Identity, payload: memoryview | bytes) -> bytes:
    """Return the header of a record, ``layout.header_bytes`` long."""
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        layout.page_size,
        layout.page_bytes,
        zlib.crc32(payload),
        whose.namespace,
        whose.key,
        whose.parent,
        layout.name,
    )
    body = head + whose.tokens
    return (body + _CHECKSUM.pack(zlib.crc32(body))).ljust(layout.header_bytes, b"\0")


def read_header(layout: Layout, header: bytes | memoryview) -> tuple[Identity | None, int, Flaw]:
    """Return whose page a header announces, the payload's checksum, and what is wrong with it."""
    size = _HEAD.size + 4 * layout.page_size
    if len(header) < size + _CHECKSUM.size:
        return None, 0, "short"
    magic, version, num_tokens, page_bytes, checksum, namespace, key, parent, name = (
        _HEAD.unpack_from(header)
    )
    if magic != MAGIC:
        return None, 0, "magic"
    if version != VERSION:
        return None, 0, "version"
    if (num_tokens, page_bytes) != (layout.page_size, layout.page_bytes):
        return None, 0, "layout"
    if _CHECKSUM.unpack_from(header, size)[0] != zlib.crc32(header[:size]):
        return None, 0, "header"
    if name != layout.name:
        return None, 0, "layout"
    tokens = bytes(header[_HEAD.size : size])
    return Identity(namespace, key, parent, tokens), checksum, ""


def verify(
    layout: Layout, whose: Identity, header: bytes | memoryview, payload: memoryview | bytes
) -> Flaw:
    """Return what keeps a record from being the page ``whose`` says; empty if nothing does."""
    found, checksum, flaw = read_header(layout, header)
    if flaw:
        return flaw
    if found != whose:
        return "identity"
    if len(payload) != layout.page_bytes:
        return "short"
    return "" if zlib.crc32(payload) == checksum else "payload"
