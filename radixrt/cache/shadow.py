"""Two miniature caches over the watched pages: would plain LRU do better than what was learned?"""

from __future__ import annotations

from collections import OrderedDict

from radixrt.cache.ages import age_bucket

_FADE = 0.9998
"""Weight of a use after the next one: the last five thousand count."""

_MARGIN = 0.995
"""The learned order is left when it hits less than this share of LRU's hits."""


class Shadow:
    """Which of the watched pages LRU and the learned order would hold, each in its share of memory.

    They see pages alone, not the tree: a page is used whenever its descendants are, so its place in
    either order seldom comes before theirs. ``prefers_lru`` follows the fading hits of both.
    """

    def __init__(self, num_pages: int) -> None:
        self.worth: list[list[float]] = []
        self.prefers_lru = False
        self._num_pages = num_pages
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._held: dict[int, int] = {}  # key → its group, -1 while it runs
        self._by_group: dict[int, OrderedDict[int, float]] = {}
        self._hits = [0.0, 0.0]
        self.num_hits = [0, 0]
        self.num_uses = 0

    def use(self, key: int, now: float) -> None:
        """A watched page is asked for, or was computed."""
        recent, held, hits = self._recent, self._held, self._hits
        is_recent, group = key in recent, held.get(key)
        is_held = group is not None
        self.num_uses += 1
        self.num_hits[0] += is_recent
        self.num_hits[1] += is_held
        hits[0] = _FADE * hits[0] + is_recent
        hits[1] = _FADE * hits[1] + is_held
        if is_recent:
            recent.move_to_end(key)
        else:
            recent[key] = None
            if len(recent) > self._num_pages:
                recent.popitem(last=False)
        if group is not None and group >= 0:
            del self._by_group[group][key]
        held[key] = -1
        if not is_held and len(held) > self._num_pages:
            self._evict(now)
        self.prefers_lru = hits[1] < _MARGIN * hits[0]

    def rests(self, key: int, group: int, now: float) -> None:
        """A watched page ages from now on as one of ``group``."""
        before = self._held.get(key)
        if before is None:
            return
        if before >= 0:
            del self._by_group[before][key]
        self._held[key] = group
        self._by_group.setdefault(group, OrderedDict())[key] = now

    def forget(self, key: int) -> None:
        """A page is not watched any more."""
        self._recent.pop(key, None)
        group = self._held.pop(key, -1)
        if group >= 0:
            del self._by_group[group][key]

    def _evict(self, now: float) -> None:
        victim, least, victims = None, 0.0, None
        for group, pages in self._by_group.items():
            if not pages:
                continue
            key, since = next(iter(pages.items()))
            worth = self.worth[group][age_bucket(now - since)]
            if victim is None or worth < least:
                victim, least, victims = key, worth, pages
        if victim is not None and victims is not None:
            del victims[victim]
            del self._held[victim]
