"""The tiers together: what is copied where and when, and what is worth bringing back."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from radixrt.cache.costs import Costs
from radixrt.cache.host import HostMatch, HostTier, PageLoad, num_a_poll
from radixrt.cache.movements import Backup, Fetch, Store, WaitingSequences, digest
from radixrt.cache.pages import Int32
from radixrt.cache.radix import Lookup, RadixCache
from radixrt.cache.tier import Completion, PageRun, Tier
from radixrt.cache.tier_policy import HiCacheCounters, Refusal, TierPolicy

RETRY = 32
"""So many refusals of one tier in a row: the next is tried all the same. Nothing else would find
out that it was measured at a bad time."""

NUM_REMEMBERED = 65_536
"""Runs that are remembered as stored, so that they are not looked up again."""


class HiCache:
    """Keeps what the device forgets: on the host, and from there in stores (disk, remote).

    Owned by the engine's thread. ``poll`` once an iteration does all the work that is not asked
    for: it takes completions in and starts what may start; nothing here ever waits.

    A request's way through the tiers: ``fetch`` when it arrives, if a store knows more of it than
    the host; ``find`` and ``load`` when it is admitted; ``backup`` and ``sighted`` when it is done.
    """

    def __init__(
        self,
        device: RadixCache,
        host: HostTier,
        stores: Sequence[Tier] = (),
        *,
        costs: Costs | None = None,
        policy: TierPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.device = device
        self.host = host
        self.stores = tuple(stores)
        self.costs = costs or Costs()
        self.policy = policy or TierPolicy()
        self.counters = HiCacheCounters()
        self.page_size = device.page_size
        self.clock = clock
        self._backups: dict[int, Backup] = {}
        self._to_back_up = WaitingSequences()
        self._fetches: dict[tuple[str, int], Fetch] = {}
        self._fetching: dict[bytes, Fetch] = {}  # by page key
        self._puts: dict[tuple[str, int], Store] = {}
        self._to_store = WaitingSequences()
        self._stored: OrderedDict[bytes, None] = OrderedDict()
        self._sources: tuple[Tier, ...] = ()
        self._refusals: dict[str, int] = {}  # by tier, in a row

    # ------------------------------------------------------------ to the device

    def find(self, prompt: Lookup, num_known: int) -> tuple[HostMatch | None, Refusal, float]:
        """Return what the host knows of a prompt, which was looked up on the device, beyond the
        first ``num_known`` tokens.

        The match is to be loaded or unmatched. None when there is nothing or, with the refusal
        "not_worth" and the predicted seconds, when computing is cheaper.
        """
        # The host has full pages.
        possible = prompt.prompt_len // self.page_size * self.page_size
        if not self.host.cache.num_cached or possible - num_known < self.policy.min_load_tokens:
            return None, "", 0.0
        match = self.host.match(prompt, num_known // self.page_size)
        more = match.num_tokens - num_known
        if more < self.policy.min_load_tokens:
            self.host.unmatch(match)
            return None, "", 0.0
        seconds = self.costs.tier(self.host.name).predict(len(match.pages))
        if not self._is_worth(self.host, len(match.pages), more):
            self.host.unmatch(match)
            return None, "not_worth", seconds
        return match, "", seconds

    def copy_cost(self) -> float:
        """Return what bringing a page back from the host costs, as a share of computing it."""
        _, copying = self.costs.tier(self.host.name).fit()
        _, computing = self.costs.compute.fit()
        computing *= self.page_size
        is_known = copying > 0 and computing < math.inf
        return min(max(copying / computing, 0.01), 1.0) if is_known else 0.2

    def load(self, match: HostMatch, first: int, pages: Int32) -> PageLoad:
        """Plan to copy a match's pages from ``first`` on into the device's ``pages``."""
        self.counters.loaded += len(pages)
        return self.host.load(match, first, pages)

    def take_loads(self) -> list[PageLoad]:
        """Return the planned loads; the next step starts them before its forward."""
        return self.host.take_planned()

    def computed(self, num_tokens: int, seconds: float) -> None:
        """A step that computed prompts took so long: what loading is compared with."""
        self.costs.compute.observe(num_tokens, seconds)

    # ------------------------------------------------------------ from the device

    def backup(self, namespace: str, token_ids: Int32) -> None:
        """Copy the full pages of ``token_ids`` to the host when the link is idle, if the device
        still has them then. The array is kept."""
        if self.policy.write_through:
            self.copy_down(namespace, token_ids)

    def copy_down(self, namespace: str, token_ids: Int32) -> None:
        """``backup``, whatever the policy says."""
        if len(token_ids) >= self.page_size:
            self._to_back_up.add(namespace, token_ids)

    @property
    def is_copying_down(self) -> bool:
        """Whether something waits to be copied to the host, or is being copied."""
        return bool(self._to_back_up.items or self._backups)

    def sighted(self, namespace: str, token_ids: Int32) -> None:
        """``token_ids`` begin a prompt that somebody had sent before. The array is kept."""
        if self.policy.store_on == "twice":
            self.keep(namespace, token_ids)

    def keep(self, namespace: str, token_ids: Int32) -> None:
        """Copy the full pages of ``token_ids`` to the stores, from the host. The array is kept."""
        token_ids = token_ids[: len(token_ids) // self.page_size * self.page_size]
        if self.stores and len(token_ids) and digest(namespace, token_ids) not in self._stored:
            self._to_store.add(namespace, token_ids)

    # ------------------------------------------------------------ from the stores

    def attach(self, tier: Tier) -> None:
        """Read from one more store, and never write to it; closed with the others."""
        self._sources += (tier,)

    def fetch(self, namespace: str, token_ids: Int32) -> Fetch | None:
        """Start bringing what a store knows of ``token_ids`` beyond the host to the host.

        Returns the fetch to wait for, which may be one that is under way for the same pages; None
        when there is nothing to wait for.
        """
        size = self.page_size
        last = len(token_ids) // size
        if not (self.stores or self._sources) or not last:
            return None
        first = max(self.host.cache.peek(namespace, token_ids) // size, 0)
        if first >= last:
            return None
        known = self.device.peek(namespace, token_ids)
        run = PageRun(namespace, token_ids, size, first, last).with_keys()
        under_way = self._fetching.get(run.keys[first])
        if under_way is not None:
            self.counters.coalesced_fetches += 1
            return under_way
        for tier in (*self.stores, *self._sources):
            num_pages = tier.probe(run)
            more = (first + num_pages) * size - max(known, first * size)
            if more < self.policy.min_load_tokens:
                continue
            if not self._is_worth(tier, num_pages, more):
                continue
            compute = self.costs.compute.predict(more)
            fetch = self._begin_fetch(tier, run.part(first, first + num_pages), compute)
            if fetch is not None:
                return fetch
        return None

    def _is_worth(self, tier: Tier | HostTier, num_pages: int, num_tokens: int) -> bool:
        """Whether bringing pages from a tier is quicker than computing the tokens, or is to be
        tried."""
        seconds = self.costs.tier(tier.name).predict(num_pages)
        if self.policy.always_load or seconds < self.costs.compute.predict(num_tokens):
            self._refusals[tier.name] = 0
            return True
        self._refusals[tier.name] = (self._refusals.get(tier.name, 0) + 1) % (RETRY + 1)
        if self._refusals[tier.name]:
            self.counters.not_worth += num_pages
        return not self._refusals[tier.name]

    def _begin_fetch(self, tier: Tier, run: PageRun, compute: float) -> Fetch | None:
        fill = self.host.begin_fill(run)
        if fill is None:
            return None
        if not fill.run.num_pages:
            self.host.end_fill(fill, 0)
            return None
        patience = self.policy.fetch_deadline_s
        if not self.policy.always_load:
            # Longer than computing takes is no gain; a little more, for predictions are rough.
            patience = min(patience, 2 * compute + 0.02)
        fetch = Fetch(tier.name, fill.run, self.clock() + patience, fill)
        fetch.keys = fill.run.with_keys().keys[fill.run.first :]
        ticket = tier.get(fill.run, fill.pages, fetch.deadline)
        self._fetches[tier.name, ticket] = fetch
        for key in fetch.keys:
            self._fetching[key] = fetch
        self.counters.fetches += 1
        return fetch

    # ------------------------------------------------------------ every iteration

    @property
    def is_busy(self) -> bool:
        """Whether a later ``poll`` has something to do."""
        return bool(
            self._backups
            or self._fetches
            or self._puts
            or self._to_back_up.items
            or self._to_store.items
            or self.host.num_loading
        )

    def poll(self) -> None:
        """Take in what has ended, give up what is late, start what may start."""
        if not self.is_busy:
            return
        for completion in self.host.poll():
            self._host_ended(completion)
        for tier in (*self.stores, *self._sources):
            for completion in tier.poll():
                self._store_ended(tier, completion)
        if self._fetches:
            now = self.clock()
            for fetch in self._fetches.values():
                if not fetch.is_over and now >= fetch.deadline:
                    fetch.is_over = True
                    fetch.outcome = "timeout"
                    self.counters.late_fetches += 1
        if self._to_back_up.items and not self.host.num_loading:
            self._start_backups()
        if self._to_store.items and not self._to_back_up.items:
            self._start_stores()  # from the host: what is on its way there first

    def fence(self, timeout_s: float) -> bool:
        """Copy everything that waits to be copied, and wait until it is safe; False when it took
        longer. For shutting down, saving and tests: this blocks."""
        end = time.monotonic() + timeout_s
        while self.is_busy:
            if time.monotonic() > end:
                return False
            self.poll()
            self.host.fence(0.01)
            time.sleep(0.0005)
        return all(tier.fence(max(0.0, end - time.monotonic())) for tier in self.stores)

    def clear(self) -> int:
        """Forget what is on the host, but for what is being copied; return the pages."""
        return self.host.cache.clear()

    def close(self) -> None:
        """Stop every tier; idempotent."""
        for tier in (*self.stores, *self._sources):
            tier.close()
        self.host.close()

    def stats(self) -> dict[str, Any]:
        """Return counters of the whole and of each tier, and the predicted costs."""
        tiers = {
            tier.name: asdict(tier.stats()) for tier in (self.host, *self.stores, *self._sources)
        }
        costs = {name: cost.fit() for name, cost in self.costs.tiers.items()}
        costs["compute"] = self.costs.compute.fit()
        return {
            **asdict(self.counters),
            "tiers": tiers,
            "costs": {k: v for k, v in costs.items() if np.isfinite(v).all()},
        }

    # ------------------------------------------------------------ inside

    def _host_ended(self, completion: Completion) -> None:
        backup = self._backups.pop(completion.ticket, None)
        if backup is None:
            if completion.num_pages:
                cost = self.costs.tier(self.host.name)
                cost.observe(completion.num_pages, completion.seconds)
            return
        ok = completion.outcome == "ok"
        self.counters.backed_up += completion.num_pages
        self.counters.failed_backups += not ok
        end = backup.first + completion.num_pages
        has_more = end == backup.last < len(backup.lease.pages)
        if ok:
            backup.lease.note_backed(end)
        backup.lease.release()
        if has_more:
            self._to_back_up.add_first(backup.namespace, backup.token_ids)
        elif ok and self.policy.store_on == "once":
            self.keep(backup.namespace, backup.token_ids[: end * self.page_size])

    def _start_backups(self) -> None:
        """Copy what waits, the oldest first, while no more than the policy allows is locked."""
        size = self.page_size
        for _ in range(num_a_poll(len(self._to_back_up.items))):
            room = self.policy.max_copy_pages - self.host.num_storing
            if room < 1:
                break
            namespace, token_ids = self._to_back_up.pop()
            known = self.host.cache.peek(namespace, token_ids) // size
            lease = self.device.hold(namespace, token_ids)
            last = min(len(lease.pages), known + room)
            if last <= known:
                lease.note_backed(known)
                lease.release()
                if self.policy.store_on == "once":
                    self.keep(namespace, token_ids[: known * size])
                continue
            run = PageRun(namespace, token_ids, size, known, last)
            ticket = self.host.put(run, lease.pages[known:last], self.clock())
            self._backups[ticket] = Backup(namespace, token_ids, lease, known, last)
        self.host.start_puts()

    def _start_stores(self) -> None:
        size = self.page_size
        while self._to_store.items and len(self._puts) < self.policy.max_puts * len(self.stores):
            namespace, token_ids = self._to_store.pop()
            lease = self.host.cache.hold(namespace, token_ids)
            pages = lease.pages
            run = PageRun(namespace, token_ids, size, 0, len(pages)).with_keys()
            for tier in self.stores:
                have = tier.probe(run) if tier.is_exact else 0
                if have < len(pages):
                    self.host.pages.read(pages[have:])
                    part = run.part(have, len(pages))
                    ticket = tier.put(part, pages[have:], self.clock())
                    self._puts[tier.name, ticket] = Store(tier, part, pages[have:])
            lease.release()
            if len(pages) == len(token_ids) // size:
                self._remember(digest(namespace, token_ids))

    def _remember(self, run: bytes) -> None:
        self._stored[run] = None
        if len(self._stored) > NUM_REMEMBERED:
            self._stored.popitem(last=False)

    def _store_ended(self, tier: Tier, completion: Completion) -> None:
        at = tier.name, completion.ticket
        put = self._puts.pop(at, None)
        if put is not None:
            self.host.pages.read_done(put.host_pages)
            self.counters.stored += completion.num_pages
            if completion.outcome != "ok":
                self.counters.failed_stores += 1
                self._stored.clear()  # what it was of can be stored again
            return
        fetch = self._fetches.pop(at)
        num_pages = completion.num_pages
        self.host.end_fill(fetch.fill, num_pages)
        for key in fetch.keys:
            if self._fetching.get(key) is fetch:
                del self._fetching[key]
        self.counters.fetched += num_pages
        self.counters.failed_fetches += completion.outcome != "ok"
        if num_pages:
            self.costs.tier(tier.name).observe(num_pages, completion.seconds)
        if not fetch.is_over:
            fetch.is_over = True
            fetch.outcome = completion.outcome
            fetch.num_tokens = num_pages * self.page_size
