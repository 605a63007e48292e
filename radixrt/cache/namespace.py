"""What two sequences must have in common before one may use the other's KV pages."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

_FORMAT = "radixrt-kv-1"


@dataclass(frozen=True, slots=True)
class Namespace:
    """Everything but the tokens that decides the bytes of a KV page, and who may read it.

    ``weights``    fingerprint of the checkpoint
    ``tokenizer``  fingerprint of the tokenizer
    ``rope``       rotary embedding with its scaling, as the model computes it
    ``kv_dtype``   dtype of K and V in the pool
    ``page_size``  tokens a page
    ``layout``     layers, heads and order of axes of a page
    ``adapter``    fingerprint of the adapter; empty for none
    ``tenant``     secret of a tenant whose prefixes nobody else may hit; empty for the shared cache
    """

    weights: str
    tokenizer: str
    rope: str
    kv_dtype: str
    page_size: int
    layout: str
    adapter: str = ""
    tenant: str = ""

    def fingerprint(self) -> str:
        """Return 32 hex digits that are the same in every process and on every machine."""
        digest = hashlib.blake2b(_FORMAT.encode(), digest_size=16)
        for field in fields(self):
            value = str(getattr(self, field.name)).encode("utf-8")
            # Lengths keep ("ab", "c") and ("a", "bc") apart.
            digest.update(f"\n{field.name}:{len(value)}:".encode())
            digest.update(value)
        return digest.hexdigest()
