"""Branches that were forked together: what one has cached is kept while others of them run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from radixrt.cache.lease import Lease

MAX_WAIT_S: Final = 600.0
"""A fork that waits longer for its siblings is one idle branch among others."""

_PRIORITY: Final = 1


class Families:
    """Counts the unanswered calls of each family, and holds the leases of its idle branches.

    A program that forks reads all forks before it goes on, so the ones that are ready first wait
    for the last. ``lease_of`` returns what a branch has parked, if anything.
    """

    def __init__(self, lease_of: Callable[[int], Lease | None]) -> None:
        self._lease_of = lease_of
        self._running: dict[int, int] = {}
        self._waiting: dict[int, set[int]] = {}

    def began(self, family: int) -> None:
        """A call of the family was accepted."""
        if family:
            self._running[family] = self._running.get(family, 0) + 1

    def ended(self, family: int) -> None:
        """A call of the family was answered; the last one lets go of the others' leases."""
        if not family:
            return
        left = self._running.get(family, 1) - 1
        if left > 0:
            self._running[family] = left
            return
        self._running.pop(family, None)
        for branch in self._waiting.pop(family, ()):
            lease = self._lease_of(branch)
            if lease is not None:
                lease.hold(0.0, 0)

    def parked(self, family: int, branch: int, lease: Lease) -> None:
        """A branch of the family is idle; its own call, if answered, was counted as ``ended``."""
        if family and self._running.get(family, 0) > 0:
            lease.hold(MAX_WAIT_S, _PRIORITY)
            self._waiting.setdefault(family, set()).add(branch)
