"""What moves between the tiers or waits to: the records that ``HiCache`` keeps of it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from radixrt.cache.host import Fill
from radixrt.cache.lease import Lease
from radixrt.cache.pages import Int32
from radixrt.cache.tier import Outcome, PageRun, Tier

MAX_QUEUED = 4096
"""Sequences that wait to be copied down; the oldest ones are forgotten first."""


@dataclass(slots=True, eq=False)
class Fetch:
    """Pages on their way from a store to the host, and who waits for them.

    ``is_over`` once nobody should wait any longer: all is there, it failed, or its time is up; the
    transfer itself may still go on then. ``num_tokens`` have arrived.
    """

    tier: str
    run: PageRun
    deadline: float
    fill: Fill
    is_over: bool = False
    outcome: Outcome = "ok"
    num_tokens: int = 0
    keys: tuple[bytes, ...] = ()


@dataclass(slots=True, eq=False)
class Backup:
    """Pages of the device, locked, on their way to the host."""

    namespace: str
    token_ids: Int32
    lease: Lease
    first: int
    last: int


@dataclass(slots=True, eq=False)
class Store:
    """Pages of the host on their way to a store."""

    tier: Tier
    run: PageRun
    host_pages: Int32


@dataclass(slots=True)
class WaitingSequences:
    """Sequences to be copied; the same one once, the newest last."""

    items: OrderedDict[bytes, tuple[str, Int32]] = field(default_factory=OrderedDict)

    def add(self, namespace: str, token_ids: Int32) -> None:
        """Queue a sequence, last."""
        self.items[digest(namespace, token_ids)] = namespace, token_ids
        if len(self.items) > MAX_QUEUED:
            self.items.popitem(last=False)

    def add_first(self, namespace: str, token_ids: Int32) -> None:
        """Queue a sequence, first."""
        name = digest(namespace, token_ids)
        self.items[name] = namespace, token_ids
        self.items.move_to_end(name, last=False)

    def pop(self) -> tuple[str, Int32]:
        """Take the first one out."""
        return self.items.popitem(last=False)[1]


def digest(namespace: str, token_ids: Int32) -> bytes:
    """Return a name of a sequence, for remembering it."""
    data = np.ascontiguousarray(token_ids, np.int32).tobytes()
    return hashlib.blake2b(namespace.encode() + b"\0" + data, digest_size=16).digest()
