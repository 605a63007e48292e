"""How long programs are busy with themselves between two calls, learned by call site."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict

from radixrt.lang.source import Where

_MAX_SITES = 4096
_FADE = 0.9
"""Weight of a pause after the next one at its site: the last ten count."""

_LEAST_S = 1e-3


class Pauses:
    """The time from a call's answer to the next call of its branch, by the source line of the
    first: what a tool call, or waiting for a human, takes there.

    The expectation is the geometric mean of the latest pauses, so that one long one does not decide
    it. Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sites: OrderedDict[Where, tuple[float, float]] = OrderedDict()  # weight, sum of logs

    def note(self, site: Where, pause_s: float) -> None:
        """A branch went on ``pause_s`` seconds after the call at ``site`` was answered."""
        log = math.log(max(pause_s, _LEAST_S))
        with self._lock:
            weight, total = self._sites.pop(site, (0.0, 0.0))
            self._sites[site] = _FADE * weight + 1.0, _FADE * total + log
            if len(self._sites) > _MAX_SITES:
                self._sites.popitem(last=False)

    def expected(self, site: Where) -> float | None:
        """Return the seconds that a branch is expected to pause after a call at ``site``; None
        when none has gone on from there yet."""
        with self._lock:
            weight, total = self._sites.get(site, (0.0, 0.0))
        return math.exp(total / weight) if weight else None
