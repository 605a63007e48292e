"""Which waiting requests start to run."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.scheduling.explaining import explain
from radixrt.runtime.scheduling.kv import KvSpace
from radixrt.runtime.scheduling.queue import WaitingQueue
from radixrt.runtime.scheduling.request import Request
from radixrt.runtime.scheduling.slots import MIN_SHARED_TOKENS, SlotTable

Int32 = NDArray[np.int32]

MAX_REFUSALS = 8
"""How many requests that do not fit are looked at in one step."""


class Admission:
    """Moves requests from the queue into slots, as memory allows.

    A request is admitted when its prompt and a share of every running request's growth fit into
    what is free or evictable, so that decoding seldom runs out. The share rises to all of it when
    a request had to be retracted and decays while none is.
    """

    min_share = 0.25
    decay = 0.98

    def __init__(self, queue: WaitingQueue, slots: SlotTable, kv: KvSpace) -> None:
        self.queue = queue
        self.slots = slots
        self.kv = kv
        self.growth_share = 0.5
        self._outstanding = 0
        self._unnoted: list[tuple[Request, bool]] = []

    def retracted(self) -> None:
        """Memory ran short: reserve all growth for a while."""
        self.growth_share = 1.0

    def begin(self) -> None:
        """Look at what runs, before the first ``try_start`` of a step."""
        slots = self.slots
        rows = slots.active
        known = slots.num_tokens[rows]
        growth = np.ceil(self.growth_share * (slots.max_compute[rows] - known)).astype(np.int64)
        target = np.minimum(known + np.maximum(growth, 0), slots.max_compute[rows])
        pages = -(-target // slots.page_size) - slots.num_pages[rows]
        self._outstanding = int(np.maximum(pages, 0).sum())

    def try_start(self, request: Request) -> bool:
        """Give the request a slot, its cached prefix and a lease; False when memory is short."""
        kv = self.kv
        expected = self._pages_expected(request)
        shared = kv.peek(request) // self.slots.page_size
        if expected - shared + self._outstanding > kv.num_available:
            return False  # not even if the match cost nothing
        kv.match(request)
        if not self._fits(request, expected):
            kv.unmatch(request)
            return False
        self.queue.admitted(request)
        slot = self.slots.take(request)
        kv.adopt(request)
        self._outstanding += expected - int(self.slots.num_pages[slot])
        is_first = request.cached < 0
        if is_first:
            # Tokens that a constraint forces may be there already; they are no prompt.
            request.waited_s = time.monotonic() - request.arrived
            request.cached = min(int(self.slots.num_computed[slot]), request.prompt_len)
            request.evicted = kv.num_evicted(request, request.cached)
        self._unnoted.append((request, is_first))
        self.growth_share = max(self.min_share, self.growth_share * self.decay)
        return True

    def note_started(self) -> None:
        """Take what was admitted into the statistics of the cache, and tell what became of each
        prompt. To be called before the step is read back, best while it is being computed."""
        started, self._unnoted = self._unnoted, []
        for request, is_first in started:
            if request.slot < 0:
                continue  # its step could not be launched
            self.kv.note_use(request, is_first=is_first)
            if is_first:
                request.explained = explain(self.kv, request)

    def provider(self, request: Request) -> tuple[Request, int] | None:
        """Return the running request that is computing the longest prefix that the waiting one
        lacks, and that prefix' length; None when waiting for it would not pay."""
        slots, kv, request_ids = self.slots, self.kv, request.token_ids
        if not kv.reuse or not request.is_cached:
            return None
        limit, cached = min(request.logits_from, len(request_ids)), kv.peek(request)
        gain_end = cached + MIN_SHARED_TOKENS
        if gain_end > limit:
            return None
        rows = (request_ids.take(slots.catching_at, mode="clip") == slots.catching).nonzero()[0]
        if not len(rows):  # most differ there
            return None
        best: tuple[Request, int] | None = None
        # And most of the rest differ in what waiting has to gain at least.
        last = gain_end - 1
        for slot in rows[slots.tokens[rows, last] == request_ids[last]].tolist():
            running = slots.requests[slot]
            if running is None or running.namespace != request.namespace or running.is_over:
                continue
            length = min(limit, int(slots.num_known[slot]))
            differs = slots.tokens[slot, :length] != request_ids[:length]
            common = int(differs.argmax()) if differs.any() else length
            if common >= gain_end and (best is None or common > best[1]):
                best = running, common
        if best is not None and request.known_before < 0:
            request.known_before = cached
        return best

    def _pages_expected(self, request: Request) -> int:
        n = len(request.token_ids)
        end = min(n + int(self.growth_share * (request.max_len - n)), request.max_len - 1)
        return self.kv.pages_of(max(end, n))

    def _fits(self, request: Request, expected: int) -> bool:
        have = len(request.lease.pages) if request.lease is not None else 0
        need = expected - have
        return need + self._outstanding <= self.kv.num_available
