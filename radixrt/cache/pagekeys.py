"""Keys of pages outside the tree: the same for the same tokens after the same tokens, anywhere."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]

KEY_BYTES = 16
_FORMAT = b"radixrt-page-1"


def root_key(namespace: str) -> bytes:
    """Return the key that stands before the first page of a namespace."""
    return hashlib.blake2b(
        namespace.encode("utf-8"), digest_size=KEY_BYTES, person=_FORMAT
    ).digest()


def extend_keys(parent: bytes, token_ids: Int32, page_size: int) -> tuple[bytes, ...]:
    """Return the keys of the full pages of ``token_ids``, which follow the page of key ``parent``.

    A key is the hash of the parent's key and the page's tokens, so it names the whole prefix.
    """
    num_pages = len(token_ids) // page_size
    data = np.ascontiguousarray(token_ids[: num_pages * page_size], dtype="<i4").tobytes()
    step = 4 * page_size
    blake2b = hashlib.blake2b
    keys = []
    for at in range(0, num_pages * step, step):
        parent = blake2b(parent + data[at : at + step], digest_size=KEY_BYTES).digest()
        keys.append(parent)
    return tuple(keys)


def page_keys(namespace: str, token_ids: Int32, page_size: int) -> tuple[bytes, ...]:
    """Return the keys of the full pages of a sequence, from its first token."""
    return extend_keys(root_key(namespace), token_ids, page_size)
