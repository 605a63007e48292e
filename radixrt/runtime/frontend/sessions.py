"""Sessions: what one connected client has open."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from radixrt.runtime.frontend.branches import Branch
    from radixrt.runtime.frontend.calls import Call

MAX_BRANCHES = 65_536
"""Branches one client can have open."""

MAX_QUEUED_OPS = 262_144
"""Operations of one client that can wait for their branches."""

PING_INTERVAL_S = 5.0
"""How often a client shows that it is alive."""

MISSED_PINGS = 3
"""Intervals without a sign of life after which a client is gone."""


@dataclass(slots=True, eq=False)
class Session:
    """A client between ``Hello`` and its end. ``last_seen`` is monotonic seconds; ``watches``: it
    is told what the runtime does."""

    client_id: bytes
    name: str
    last_seen: float
    branches: dict[int, Branch] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    num_queued_ops: int = 0
    watches: bool = False
