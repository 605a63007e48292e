"""Writing everything that is cached to a directory, beside the work that goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from radixrt.cache.disk import DiskTier
from radixrt.cache.hicache import HiCache
from radixrt.cache.pages import Int32
from radixrt.cache.tier import PageRun

GROUP_SHARE = 4
"""A group of sequences takes one page in so many of the host: it must not push itself out."""

MAX_TRIES = 4
"""How often a sequence is copied down that did not come whole: others want the host as well."""

Sequence = tuple[str, Int32]


class SavedCopy:
    """Copies sequences to a store, a group at a time: down to the host, then from there.

    ``poll`` until it returns True; it never waits. Pages that were evicted before their turn, or
    had no room on the host, are left out.
    """

    def __init__(self, tiers: HiCache, store: DiskTier, sequences: Iterable[Sequence]) -> None:
        self.store = store
        self.num_failed = 0
        self._tiers = tiers
        self._todo = deque((namespace, token_ids, 1) for namespace, token_ids in sequences)
        self._group: list[tuple[str, Int32, int]] = []
        self._is_down = False
        self._puts: dict[int, Int32] = {}

    def poll(self) -> bool:
        """Go on; True when everything is written and synced."""
        for completion in self.store.poll():
            self._tiers.host.pages.read_done(self._puts.pop(completion.ticket))
            self.num_failed += completion.outcome != "ok"
        if self._puts or (self._group and not self._is_down and self._tiers.is_copying_down):
            return False
        if self._group and not self._is_down:
            self._is_down = True
            for namespace, token_ids, tries in self._group:
                is_whole = self._put(namespace, token_ids)
                if not is_whole and tries < MAX_TRIES:
                    self._todo.append((namespace, token_ids, tries + 1))
            return False
        if not self._todo:
            return True
        self._next_group()
        return False

    def give_up(self) -> None:
        """Wait for the writes that are under way and close the store; idempotent."""
        self._todo.clear()
        self._group = []
        self.store.close()
        for completion in self.store.poll():
            pages = self._puts.pop(completion.ticket, None)
            if pages is not None:
                self._tiers.host.pages.read_done(pages)

    def _next_group(self) -> None:
        room = self._tiers.host.pages.num_usable // GROUP_SHARE
        self._group, self._is_down = [], False
        while self._todo:
            namespace, token_ids, tries = self._todo[0]
            room -= len(token_ids) // self._tiers.page_size
            if self._group and room < 0:
                return
            self._todo.popleft()
            self._group.append((namespace, token_ids, tries))
            self._tiers.copy_down(namespace, token_ids)

    def _put(self, namespace: str, token_ids: Int32) -> bool:
        """Store what the host has of a sequence; False when that is not all of it."""
        host = self._tiers.host
        lease = host.cache.hold(namespace, token_ids)
        pages = lease.pages
        run = PageRun(namespace, token_ids, self._tiers.page_size, 0, len(pages)).with_keys()
        have = self.store.probe(run)
        if have < len(pages):
            host.pages.read(pages[have:])
            ticket = self.store.put(run.part(have, len(pages)), pages[have:], float("inf"))
            self._puts[ticket] = pages[have:]
        lease.release()
        return max(have, len(pages)) >= len(token_ids) // self._tiers.page_size
