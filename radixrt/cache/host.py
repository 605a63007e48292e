"""The host tier: a tree over pages of the host's memory, and the copies from and to the device."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.eviction import Policy, RecencyOrder
from radixrt.cache.history import PageHistory
from radixrt.cache.lease import Lease
from radixrt.cache.pages import Int32
from radixrt.cache.pagestates import TransferPages
from radixrt.cache.radix import Lookup, RadixCache
from radixrt.cache.tier import Completion, Outcome, PageRun, TierStats
from radixrt.cache.transfer import Move, Mover

FENCE_POLL_S = 0.0005

MIN_A_POLL = 2
"""So many sequences are taken in hand by one poll: each costs about 0.2 ms of the host's time, and
a device that decodes is done with a step in a few milliseconds."""


def num_a_poll(waiting: int) -> int:
    """Return how many of the sequences that wait to be copied, or were, one poll takes in hand:
    the more the more there are, so that no queue grows for ever. Later polls go on."""
    return min(waiting, max(MIN_A_POLL, waiting // 32))


class HostMatch(NamedTuple):
    """Full pages of the host that begin a sequence.

    ``pages`` int32 are the pages of the first ``num_tokens`` tokens, from page ``first`` on. They
    count a reader each, which ``load`` or ``unmatch`` takes over.
    """

    pages: Int32
    num_tokens: int
    first: int = 0


@dataclass(slots=True, eq=False)
class PageLoad:
    """Host pages on their way to pages of the device, which belong to who asked.

    Before ``start`` it can be abandoned; afterwards both pools' pages are its own until ``poll``
    reports it.
    """

    ticket: int
    pages: Int32
    host_pages: Int32
    planned: float
    move: Move | None = None


@dataclass(slots=True, eq=False)
class Fill:
    """Pages of the host that somebody is writing: the pages ``[run.first, run.first + n)`` of a
    sequence whose earlier pages the lease holds. ``source`` are the device's, if they come from
    there."""

    run: PageRun
    lease: Lease
    pages: Int32
    ticket: int = 0
    source: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))
    move: Move | None = None


class HostTier:
    """Pages below the device, in memory; see ``Tier``, whose ``pages`` are the device's here.

    ``data`` uint8 [num_pages, page_bytes] is the pool, page 0 unused. A page is

        taken ── copied to ── in the tree ── evicted or superseded ── drained by its readers ── free
        RESERVED  FILLING       READY              DRAINING                                  ABSENT

    so what the tree finds has arrived, and eviction waits for nobody.

    ``get`` only plans: a load has to begin after the device was told of everything decided before,
    so who runs the device calls ``take_planned`` and, at that point, ``start``.
    """

    name = "host"
    is_exact = True

    def __init__(
        self,
        data: NDArray[np.uint8],
        page_size: int,
        mover: Mover,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.data = data
        self.page_size = page_size
        self.pages = TransferPages(len(data))
        remembers = Policy(RecencyOrder(), PageHistory.for_pages(self.pages.num_pages))
        self.cache = RadixCache(self.pages, page_size, clock=clock, policy=remembers, tier=1)
        self.mover = mover
        self._clock = clock
        self._tickets = itertools.count(1)
        self._planned: list[PageLoad] = []
        self._taken: list[PageLoad] = []
        self._loading: list[PageLoad] = []
        self._storing: list[Fill] = []
        self._fills: list[Fill] = []
        self._ended: list[Completion] = []
        self._stats = TierStats(capacity=self.pages.num_usable)

    # ------------------------------------------------------------ tier

    def probe(self, run: PageRun) -> int:
        """See ``Tier``."""
        known = self.cache.peek(run.namespace, run.token_ids[: run.last * self.page_size])
        return max(0, known // self.page_size - run.first)

    def get(self, run: PageRun, pages: Int32, deadline: float) -> int:
        """See ``Tier``; nothing happens before ``start``."""
        tokens = run.token_ids[: run.last * self.page_size]
        match = self.match(self.cache.lookup(run.namespace, tokens))
        end = match.num_tokens // self.page_size
        if end < run.last:
            self.unmatch(match)
            return self._end_at_once("missing")
        return self.load(match, run.first, pages).ticket

    def put(self, run: PageRun, pages: Int32, deadline: float) -> int:
        """See ``Tier``; pages after a gap are refused as ``missing``."""
        fill = self.begin_fill(run)
        if fill is None:
            return self._end_at_once("full" if self._has(run, run.first) else "missing")
        if not fill.run.num_pages:
            self.end_fill(fill, 0)
            return self._end_at_once("ok", run.num_pages)
        skipped = fill.run.first - run.first
        fill.source = pages[skipped : skipped + len(fill.pages)]
        fill.ticket = next(self._tickets)
        self._storing.append(fill)
        return fill.ticket

    def start_puts(self) -> None:
        """Start what was put since the last call, as one move; ``poll`` does so as well."""
        fills = [fill for fill in self._storing if fill.move is None]
        if fills:
            move = self.mover.store(
                np.concatenate([fill.source for fill in fills]),
                np.concatenate([fill.pages for fill in fills]),
            )
            for fill in fills:
                fill.move = move

    def poll(self) -> Sequence[Completion]:
        """See ``Tier``."""
        if self._loading:
            self._loading = [load for load in self._loading if not self._end_load(load)]
        if self._storing:
            self.start_puts()
            now = num_a_poll(len(self._storing))
            first, later = self._storing[:now], self._storing[now:]
            self._storing = [fill for fill in first if not self._end_store(fill)] + later
        ended, self._ended = self._ended, []
        return ended

    def drop(self, run: PageRun) -> None:
        """See ``Tier``; what continues the run goes with it."""
        self.cache.forget(run.namespace, run.token_ids[: run.last * self.page_size], run.first)

    def stats(self) -> TierStats:
        """See ``Tier``."""
        self._stats.ready = self.cache.num_cached
        self._stats.evicted = self.cache.counters.evicted_pages
        return self._stats

    def fence(self, timeout_s: float) -> bool:
        """See ``Tier``; what was only planned is not waited for."""
        end = time.monotonic() + timeout_s
        self.start_puts()
        while any(not fill.move.is_done for fill in self._storing if fill.move is not None):
            if time.monotonic() > end:
                return False
            time.sleep(FENCE_POLL_S)
        return True

    def close(self) -> None:
        """See ``Tier``."""
        self.give_up_loads()
        self.mover.close()

    # ------------------------------------------------------------ to the device

    @property
    def num_moving(self) -> int:
        """Pages that are being copied, either way, or planned to be."""
        loads = [*self._planned, *self._taken, *self._loading]
        return sum(len(load.pages) for load in loads) + self.num_storing

    @property
    def num_loading(self) -> int:
        """Loads that are planned or under way."""
        return len(self._planned) + len(self._taken) + len(self._loading)

    @property
    def num_storing(self) -> int:
        """Pages that are being copied from the device."""
        return sum(len(fill.pages) for fill in self._storing)

    def match(self, prompt: Lookup, first: int = 0) -> HostMatch:
        """Return the pages of the longest known prefix from page ``first`` on, as a use of them;
        the prompt may have been looked up on the device.

        A page that continues it in part is left out: the request would write its own tokens to the
        copy while the forward is still waiting for it.
        """
        pages, num_pages = self.cache.use(prompt, first)
        self.pages.read(pages)
        return HostMatch(pages, num_pages * self.page_size, first)

    def unmatch(self, match: HostMatch) -> None:
        """Give a match back unused."""
        self.pages.read_done(match.pages)

    def load(self, match: HostMatch, first: int, pages: Int32) -> PageLoad:
        """Plan to copy the match's pages from ``first`` on to the device's ``pages``."""
        skipped = first - match.first
        self.pages.read_done(match.pages[:skipped])
        load = PageLoad(next(self._tickets), pages, match.pages[skipped:], self._clock())
        assert len(load.pages) == len(load.host_pages)
        self._planned.append(load)
        return load

    def take_planned(self) -> list[PageLoad]:
        """Return the loads that are not started; the caller starts them, or gives up."""
        planned, self._planned = self._planned, []
        self._taken += planned
        return planned

    def start(self, loads: Sequence[PageLoad]) -> Move:
        """Start planned loads as one move; at least one."""
        move = self.mover.load(
            np.concatenate([load.pages for load in loads]),
            np.concatenate([load.host_pages for load in loads]),
        )
        for load in loads:
            load.move = move
            self._taken.remove(load)
        self._loading += loads
        return move

    def give_up_loads(self) -> None:
        """Abandon what was not started and wait for what was: the device's pages go elsewhere."""
        for load in [*self._planned, *self._taken]:
            self.pages.read_done(load.host_pages)
            self._ended.append(Completion(load.ticket, "closed", 0, 0, 0.0))
        self._planned, self._taken = [], []
        for load in self._loading:
            assert load.move is not None
            load.move.finish()

    # ------------------------------------------------------------ from the device, or from below

    def begin_fill(self, run: PageRun) -> Fill | None:
        """Take pages for those of the run that the tier lacks, as many as there is room for.

        Returns a fill, of no pages when all are known, to be ended by ``end_fill``; None when the
        tier lacks pages before the run or has no room.
        """
        size = self.page_size
        lease = self.cache.acquire(run.namespace, run.token_ids[: run.last * size])
        known = len(lease.pages)
        if known < run.first:
            lease.release()
            return None
        wanted = run.last - known
        missing = wanted - self.pages.num_free
        if missing > 0:
            self.cache.evict(missing)
        count = min(wanted, self.pages.num_free)
        if wanted and not count:
            lease.release()
            return None
        pages = self.pages.take(count)
        self.pages.fill(pages)
        fill = Fill(run.part(known, known + count), lease, pages)
        self._fills.append(fill)
        return fill

    def end_fill(self, fill: Fill, num_pages: int) -> None:
        """Make the first ``num_pages`` of a fill visible and free the others."""
        self._fills.remove(fill)
        good, bad = fill.pages[:num_pages], fill.pages[num_pages:]
        self.pages.publish(good)
        self.pages.give(bad)
        if num_pages:
            end = fill.run.first + num_pages
            # Others may have filled the same pages meanwhile; the lease begins where it did.
            pages = np.concatenate([fill.lease.pages[: fill.run.first], good])
            tokens = fill.run.token_ids[: end * self.page_size]
            self.pages.give(fill.lease.extend(tokens, pages).duplicates)
        fill.lease.release()

    def check(self) -> None:
        """Assert that every page is free, cached, being filled or draining; for tests."""
        self.cache.check()
        filling = sum(len(fill.pages) for fill in self._fills)
        total = self.pages.num_free + self.cache.num_cached + filling + self.pages.num_draining
        assert total == self.pages.num_usable, (
            f"{self.pages.num_free} free + {self.cache.num_cached} cached + {filling} filling + "
            f"{self.pages.num_draining} draining != {self.pages.num_usable} host pages"
        )

    # ------------------------------------------------------------ inside

    def _has(self, run: PageRun, num_pages: int) -> bool:
        size = self.page_size
        known = self.cache.peek(run.namespace, run.token_ids[: num_pages * size])
        return known >= num_pages * size

    def _end_at_once(self, outcome: Outcome, num_pages: int = 0) -> int:
        ticket = next(self._tickets)
        self._stats.refused += outcome != "ok"
        self._ended.append(Completion(ticket, outcome, num_pages, 0, 0.0))
        return ticket

    def _end_load(self, load: PageLoad) -> bool:
        assert load.move is not None
        if not load.move.is_done:
            return False
        self.pages.read_done(load.host_pages)
        num = len(load.pages)
        num_bytes = num * self.data.shape[1]
        self._stats.read += num
        self._stats.bytes_read += num_bytes
        # Loads of one step are one move: each took its share.
        seconds = load.move.seconds * num / load.move.num_pages
        self._ended.append(Completion(load.ticket, "ok", num, num_bytes, seconds))
        return True

    def _end_store(self, fill: Fill) -> bool:
        move = fill.move
        assert move is not None
        if not move.is_done and not move.has_failed:
            return False
        num = len(fill.pages) if move.is_done else 0
        self.end_fill(fill, num)
        num_bytes = num * self.data.shape[1]
        self._stats.written += num
        self._stats.bytes_written += num_bytes
        self._stats.failed += len(fill.pages) - num
        outcome: Outcome = "ok" if move.is_done else "failed"
        seconds = move.seconds * num / move.num_pages
        self._ended.append(Completion(fill.ticket, outcome, num, num_bytes, seconds))
        return True
