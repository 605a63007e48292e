"""How likely and how soon pages are used again, learned from a sample of them."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.ages import EDGE_LIST, EDGES, NUM_AGES, OLDEST_S, UPPER, age_bucket
from radixrt.cache.pagehash import UInt64
from radixrt.cache.shadow import Shadow

Float64 = NDArray[np.float64]

PLAIN, ENDED, IDLE, HELD = 0, 1, 2, 7
"""States of a page that rests: of nobody's branch, of a program that has ended, of a branch that is
idle (five states: pause unknown, or expected to be short … long), of a branch that asked to be
kept."""

NUM_STATES: Final = 8
_PAUSES = (2.0, 8.0, 32.0, 128.0)
_USES = (2, 3, 4, 6, 9, 17)
NUM_GROUPS: Final = NUM_STATES * (len(_USES) + 1)

_PRIOR_OF_STATE = np.array([1.0, 0.05, 3.0, 3.0, 3.0, 3.0, 3.0, 6.0])
"""How much likelier than plain pages those of a state are to be used again, until it is known."""

_WIDTHS: Float64 = UPPER - EDGES
_CENTRES: Float64 = np.sqrt(np.maximum(EDGES, 0.25) * UPPER)

_PRIOR_EVENTS = 10.0
"""So many observed uses weigh as much as what was believed before."""

MAX_WATCHED: Final = 16_384
"""Pages watched at most: about 4 MB with the shadow caches."""

REFRESH_S: Final = 20.0
"""Seconds between two looks at what was learned; each takes about a millisecond."""

_RUNNING = -1


def idle_state(pause_s: float | None) -> int:
    """Return the state of a branch that is idle and, if known, expected back in ``pause_s``."""
    return IDLE if pause_s is None else IDLE + 1 + bisect_right(_PAUSES[:3], pause_s)


def group_of(state: int, uses: int) -> int:
    """Return the group of a page in a state after ``uses`` uses, its first one included."""
    return state * (len(_USES) + 1) + bisect_right(_USES, uses)


def _view(numbers: array[Any]) -> NDArray[Any]:
    """Return the same memory as an array."""
    return np.frombuffer(numbers, numbers.typecode)


class ReuseModel:
    """Rates of reuse by group and age, and what a page is worth because of them.

    A page is in a *group*: its state and how often it was used. For every group and bucket of age
    the model counts uses and the time that pages spent there unused; their quotient is the hazard.
    The worth of a page is the best it can promise a second: over all horizons h, the chance to be
    used within h by the expected time until then (at most h), given its age. That is Gittins' index
    of the page; with equal costs keeping the pages of highest worth is keeping what saves most.
    Where little was observed, hazards lean on those of all groups, and these on 1 / age: with no
    observations at all the order is that of the last use.

    A fixed share of all pages, by hash, is watched, whether cached or not; the longest unused is
    forgotten when there are too many. Source of the idea of ranking by hits per space and time:
    LHD (Beckmann, Chen, Cidon, NSDI 2018); of the sampling: SHARDS (Waldspurger et al., FAST 2015).
    """

    def __init__(self, num_pages: int, *, now: float = 0.0) -> None:
        """``num_pages``: pages of the cache that is modelled."""
        shift = max(0, math.ceil(math.log2(max(num_pages, 1) / (MAX_WATCHED / 8))))
        self._every_int = (1 << shift) - 1
        self._every = np.uint64(self._every_int)
        self.shadow = Shadow(max(1, num_pages >> shift))
        # By group and bucket, flat; changed one by one, and looked at together (``_view``).
        self._uses = array("d", [0.0]) * (NUM_GROUPS * NUM_AGES)
        self._time = array("d", [0.0]) * (NUM_GROUPS * NUM_AGES)
        self._passed = array("q", [0]) * (NUM_GROUPS * NUM_AGES)
        self._slots: OrderedDict[int, int] = OrderedDict()  # by key, the longest unused first
        self._free = list(range(MAX_WATCHED))
        self._group = array("q", [_RUNNING]) * MAX_WATCHED
        self._since = array("d", [0.0]) * MAX_WATCHED
        self._counted = array("d", [0.0]) * MAX_WATCHED
        self._num_uses = [0] * MAX_WATCHED
        self._refreshed = now
        self.worth: list[list[float]] = self._worths()
        self.shadow.worth = self.worth

    def is_watched(self, keys: UInt64) -> NDArray[np.bool_]:
        """Return which of the page hashes belong to the sample, bool [n]."""
        mixed: NDArray[np.bool_] = ((keys ^ (keys >> np.uint64(31))) & self._every) == 0
        return mixed

    def is_one_watched(self, key: int) -> bool:
        """``is_watched`` for one page hash."""
        return ((key ^ (key >> 31)) & self._every_int) == 0

    def born(self, keys: Sequence[int], uses: Sequence[int], now: float) -> None:
        """Watched pages were computed. Those known already were evicted before: that was noted by
        ``used`` when they were asked for."""
        for key, num_uses in zip(keys, uses, strict=True):
            if key not in self._slots:
                slot = self._slot(key)
                self._num_uses[slot] = num_uses
                self._group[slot] = _RUNNING
                self.shadow.use(key, now)

    def used(self, keys: Sequence[int], now: float) -> None:
        """A request asks for watched pages, cached or not."""
        slots, groups, use = self._slots, self._group, self.shadow.use
        for key in keys:
            slot = slots.get(key)
            if slot is None:
                continue
            slots.move_to_end(key)
            group = groups[slot]
            if group != _RUNNING:
                self._uses[group * NUM_AGES + self._count(slot, group, now)] += 1
                groups[slot] = _RUNNING
            self._num_uses[slot] += 1
            use(key, now)

    def resumed(self, keys: Iterable[int], now: float) -> None:
        """A request that had to make room goes on: watched pages rest no more, unused."""
        for key in keys:
            slot = self._slots.get(key)
            if slot is not None and self._group[slot] != _RUNNING:
                self._count(slot, self._group[slot], now)
                self._group[slot] = _RUNNING

    def rests(self, keys: Iterable[int], state: int, now: float) -> None:
        """Nobody runs on watched pages any more; they age from now on, in ``state``."""
        for key in keys:
            slot = self._slots.get(key)
            if slot is None:
                continue
            if self._group[slot] != _RUNNING:
                self._count(slot, self._group[slot], now)
            group = group_of(state, self._num_uses[slot])
            self._group[slot] = group
            self._since[slot] = self._counted[slot] = now
            self.shadow.rests(key, group, now)
        # Here, where a request has been answered: no eviction has to wait for it.
        if now - self._refreshed >= REFRESH_S:
            self.refresh(now)

    def refresh(self, now: float) -> None:
        """Take what was observed into ``worth``, which is a new list then."""
        self._refreshed = now
        self._count_all(now)
        self.worth = self._worths()
        self.shadow.worth = self.worth

    # -- inside

    def _slot(self, key: int) -> int:
        if not self._free:
            oldest, slot = self._slots.popitem(last=False)
            self._free.append(slot)
            self.shadow.forget(oldest)
        slot = self._slots[key] = self._free.pop()
        return slot

    def _count(self, slot: int, group: int, now: float) -> int:
        """Add the time that a page has rested in its group since it was last counted; return the
        bucket of its age.

        The buckets that lie between are noted as passed, so it costs the same for any time.
        """
        since = self._since[slot]
        low = min(self._counted[slot] - since, OLDEST_S)
        high = min(now - since, OLDEST_S)
        first, last = age_bucket(low), age_bucket(high)
        if high > low:
            at = group * NUM_AGES
            self._passed[at + first] += 1
            self._passed[at + last] -= 1
            self._time[at + last] += high - EDGE_LIST[last]
            self._time[at + first] -= low - EDGE_LIST[first]
        self._counted[slot] = now
        return last

    def _count_all(self, now: float) -> None:
        """``_count`` for all pages that rest."""
        groups, since, counted = _view(self._group), _view(self._since), _view(self._counted)
        low, high = np.minimum(counted - since, OLDEST_S), np.minimum(now - since, OLDEST_S)
        grown = np.flatnonzero((groups != _RUNNING) & (high > low))
        at, low, high = groups[grown] * NUM_AGES, low[grown], high[grown]
        first = np.searchsorted(EDGES[1:], low, "right")
        last = np.searchsorted(EDGES[1:], high, "right")
        num = NUM_GROUPS * NUM_AGES
        passed, time = _view(self._passed), _view(self._time)
        passed += np.bincount(at + first, minlength=num) - np.bincount(at + last, minlength=num)
        time += np.bincount(at + last, high - EDGES[last], num)
        time -= np.bincount(at + first, low - EDGES[first], num)
        counted[grown] = now

    def _observed(self) -> tuple[Float64, Float64]:
        """Return uses and rested time by group and bucket, float64 [groups, ages] each."""
        shape = NUM_GROUPS, NUM_AGES
        passed = _view(self._passed).reshape(shape).cumsum(axis=1)
        time = _view(self._time).reshape(shape) + passed * _WIDTHS
        return _view(self._uses).reshape(shape), np.maximum(time, 0.0)

    def _hazards(self) -> Float64:
        uses, time = self._observed()
        by_age = 1.0 / _CENTRES
        scale = (uses.sum() + 1.0) / ((time.sum(axis=0) * by_age).sum() + 10.0)
        believed = scale * by_age
        pooled = (uses.sum(axis=0) + _PRIOR_EVENTS) / (time.sum(axis=0) + _PRIOR_EVENTS / believed)
        prior = np.repeat(_PRIOR_OF_STATE, NUM_GROUPS // NUM_STATES)
        ratio = (uses.sum(axis=1) + _PRIOR_EVENTS) / (
            (time * pooled).sum(axis=1) + _PRIOR_EVENTS / prior
        )
        believed = ratio[:, None] * pooled
        hazards: Float64 = (uses + _PRIOR_EVENTS) / (time + _PRIOR_EVENTS / believed)
        return hazards

    def _worths(self) -> list[list[float]]:
        """Return Gittins' index by group and age bucket, in uses a second."""
        hazards = self._hazards()
        stays = np.exp(-hazards * _WIDTHS)
        dwell = (1.0 - stays) / hazards
        best = hazards.copy()
        chance, spent, alive = np.zeros_like(best), np.zeros_like(best), np.ones_like(best)
        for ahead in range(NUM_AGES):
            # Column a looks ``ahead`` buckets past a; the last columns have nothing left to see.
            num = NUM_AGES - ahead
            chance[:, :num] += alive[:, :num] * (1.0 - stays[:, ahead:])
            spent[:, :num] += alive[:, :num] * dwell[:, ahead:]
            alive[:, :num] *= stays[:, ahead:]
            best[:, :num] = np.maximum(best[:, :num], chance[:, :num] / spent[:, :num])
        worths: list[list[float]] = best.tolist()
        return worths
