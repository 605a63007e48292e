"""Which request computes how many tokens in a step, and what becomes of the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.host import PageLoad
from radixrt.runtime.scheduling.admission import MAX_REFUSALS, Admission
from radixrt.runtime.scheduling.constrained import ConstrainedRow, ConstrainedRows
from radixrt.runtime.scheduling.deadlines import Deadlines
from radixrt.runtime.scheduling.kv import KvSpace
from radixrt.runtime.scheduling.metrics import Metrics
from radixrt.runtime.scheduling.plan import PageCopy, Plan, ScoreRows, StepResult
from radixrt.runtime.scheduling.queue import WaitingQueue
from radixrt.runtime.scheduling.request import Reason, Request
from radixrt.runtime.scheduling.slots import (
    MIN_SHARED_TOKENS,
    NOT_CATCHING,
    PLACEHOLDER,
    SlotTable,
)
from radixrt.runtime.wire import Sampled

Int32 = NDArray[np.int32]

MAX_FETCHES = 3
"""How often a request waits for pages of a store: others may have fetched only a part of its."""

MAX_PUT_OFF = 16
"""In how many iterations in a row copies wait that nobody waits for, where the loop is late."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one step: new tokens, and wanted logits.

    ``mixed_step_tokens`` bounds the new tokens where some requests decode (0: no other bound): who
    decodes waits for the whole step, and beyond what makes a device bound by arithmetic a longer
    step computes no more a second. Prompts get an eighth of it at least, and a token for every
    eight that decode, so that many decodes cannot starve them.
    """

    max_step_tokens: int
    max_logits_rows: int
    mixed_step_tokens: int = 0


class Scheduler:
    """Continuous batching over requests that catch up with their tokens.

    ``schedule`` plans and takes pages, ``commit`` takes the result in, frees and hands pages to the
    tree. Nothing else frees: ``end`` and running short of memory only mark.
    """

    def __init__(
        self,
        slots: SlotTable,
        kv: KvSpace,
        limits: Limits,
        metrics: Metrics,
        *,
        lease_bias_s: float = 60.0,
        overtake_limit: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = slots
        self.kv = kv
        self.limits = limits
        self.metrics = metrics
        self.queue = WaitingQueue(overtake_limit)
        self.admission = Admission(self.queue, slots, kv)
        self.deadlines = Deadlines()
        self._lease_bias_s = lease_bias_s
        self._clock = clock
        self._ending: list[Request] = []
        self._ended: list[Request] = []
        self._retracting: list[Request] = []
        self._fetching: list[Request] = []
        self._is_cache_doubtful = False
        self._num_put_off = 0
        self._constrained = ConstrainedRows(slots, self.end)

    # ------------------------------------------------------------ in

    def add(self, request: Request) -> None:
        """Let a request wait for admission."""
        self.deadlines.add(request)
        self._wait_or_queue(request)

    def poll_tiers(self, *, is_late: bool = False) -> None:
        """Let copies between the tiers go on, and requests whose pages have come be admitted.

        ``is_late``: the device waits for the caller, so copies that no request waits for are put
        off, though not for long.
        """
        tiers = self.kv.tiers
        if tiers is None:
            return
        is_awaited = bool(self._fetching) or tiers.host.num_loading > 0
        if is_late and not is_awaited and self._num_put_off < MAX_PUT_OFF:
            self._num_put_off += 1
            return
        self._num_put_off = 0
        self.kv.prefetch()
        tiers.poll()
        if self._fetching and any(r.fetch is None or r.fetch.is_over for r in self._fetching):
            waiting, self._fetching = self._fetching, []
            for request in waiting:
                fetch = request.fetch
                if fetch is None or not fetch.is_over:
                    self._fetching.append(request)
                    continue
                request.fetch = None
                request.fetched += fetch.num_tokens
                if fetch.outcome in ("timeout", "corrupt", "failed"):
                    request.refusal = fetch.outcome
                    request.refused_end = fetch.run.last * self.kv.page_size
                self._wait_or_queue(request)

    @property
    def num_fetching(self) -> int:
        """Requests that wait for pages of a store."""
        return len(self._fetching)

    def waiting(self) -> Iterator[Request]:
        """Yield the requests that are not running, in no order that matters."""
        yield from self._fetching
        yield from self.queue

    @property
    def is_transferring(self) -> bool:
        """Whether ``poll_tiers`` has something to do soon."""
        return bool(self._fetching) or (self.kv.tiers is not None and self.kv.tiers.is_busy)

    def _wait_or_queue(self, request: Request) -> None:
        """Queue a request, or keep it out of the queue while a store's pages are on their way."""
        if request.num_fetches < MAX_FETCHES and self.kv.fetch(request):
            request.num_fetches += 1
            self._fetching.append(request)
            return
        hint = self.kv.peek(request)
        request.match_hint = hint if hint >= MIN_SHARED_TOKENS else 0
        self.queue.add(request)

    def end(
        self, request: Request, reason: Reason, failure: str = "", code: str = "engine_fault"
    ) -> None:
        """Mark a request to end; the next ``commit`` frees and reports it. Idempotent."""
        if request.reason is None:
            request.reason = reason
            request.failure = failure
            request.failure_code = code
            if request.slot >= 0:
                self.slots.runnable[request.slot] = False
            self._ending.append(request)

    @property
    def has_work(self) -> bool:
        """Whether a step or a commit has something to do."""
        return bool(self.slots.num_active or len(self.queue) or self._ending)

    # ------------------------------------------------------------ plan

    def schedule(self) -> Plan:
        """Return the next step; its rows' pages are taken, its tokens count as computed."""
        for request in self.deadlines.expired(self._clock()) if len(self.deadlines) else ():
            self.end(request, "deadline")
        decodes, chunks = self._rows_to_compute()
        num_due = len(decodes) + len(chunks)
        decodes = self._with_pages(decodes)
        budget = _Budget(
            tokens=self._num_prefill_tokens(len(decodes)),
            logits=self.limits.max_logits_rows - len(decodes),
            pages=self.kv.num_available,
        )
        rows = decodes.tolist()
        ends = (self.slots.num_computed[decodes] + 1).tolist()
        for slot in chunks.tolist():
            self._add_chunk(slot, budget, rows, ends)
        if self.queue.num_open and not self._retracting:
            self._admit(budget, rows, ends)
        if not rows and num_due and not self._retracting:
            self._retract_youngest(1)
        return self._plan(np.array(rows, np.int32), np.array(ends, np.int32))

    def _num_prefill_tokens(self, num_decodes: int) -> int:
        """Return how many tokens may be computed beside so many decodes."""
        limits = self.limits
        room = limits.max_step_tokens - num_decodes
        if not num_decodes or not limits.mixed_step_tokens:
            return room
        mixed = limits.mixed_step_tokens
        return min(room, max(mixed - num_decodes, mixed // 8, num_decodes // 8))

    def _rows_to_compute(self) -> tuple[Int32, Int32]:
        slots = self.slots
        rows = slots.active[slots.runnable[slots.active]]
        todo = np.minimum(slots.num_tokens[rows], slots.max_compute[rows])
        todo -= slots.num_computed[rows]
        return rows[todo == 1], rows[todo > 1]

    def _with_pages(self, decodes: Int32) -> Int32:
        """Take the pages that decodes need; when memory is short, mark the youngest for retraction
        and leave out who gets no page this time."""
        slots, kv = self.slots, self.kv
        needy = slots.num_computed[decodes] >= slots.num_pages[decodes] * slots.page_size
        short = int(needy.sum()) - kv.num_available
        if short > 0:
            self._retract_youngest(short)
            stays = slots.runnable[decodes]
            decodes, needy = decodes[stays], needy[stays]
            without = decodes[needy][kv.num_available :]
            stays = ~np.isin(decodes, without)
            decodes, needy = decodes[stays], needy[stays]
        if needy.any():
            kv.grow(decodes[needy], slots.num_computed[decodes[needy]] + 1)
        return decodes

    def _add_chunk(self, slot: int, budget: _Budget, rows: list[int], ends: list[int]) -> None:
        """Plan as many of the slot's missing tokens as the budget allows."""
        slots = self.slots
        start, page_size = int(slots.num_computed[slot]), slots.page_size
        goal = min(int(slots.num_tokens[slot]), int(slots.max_compute[slot]))
        first_wanted = max(start, int(slots.logits_from[slot]))
        room = (int(slots.num_pages[slot]) + budget.pages) * page_size
        end = min(goal, start + budget.tokens, room, first_wanted + budget.logits)
        if end <= start:
            return
        more_pages = self.kv.pages_of(end) - int(slots.num_pages[slot])
        budget.tokens -= end - start
        budget.logits -= max(0, end - first_wanted)
        if more_pages > 0:
            budget.pages -= more_pages
            self.kv.grow_one(slot, end)
        rows.append(slot)
        ends.append(end)

    def _admit(self, budget: _Budget, rows: list[int], ends: list[int]) -> None:
        refusals = 0
        self.admission.begin()
        for request in self.queue.offers():
            if budget.tokens < self.slots.page_size or budget.logits < 1 or not self.slots.num_free:
                return
            provider = self.admission.provider(request)
            if provider is not None:
                self.queue.hold(request, *provider)
                continue
            if not self.admission.try_start(request):
                refusals += 1
                if refusals == MAX_REFUSALS or self.queue.is_due(request):
                    return
                continue
            budget.pages = self.kv.num_available
            self._add_chunk(request.slot, budget, rows, ends)

    def _plan(self, rows: Int32, ends: Int32) -> Plan:
        slots = self.slots
        starts = slots.num_computed[rows]
        slots.num_computed[rows] = ends
        first_wanted = np.maximum(starts, slots.logits_from[rows])
        wanted = np.maximum(ends - first_wanted, 0)
        lens = ends - starts
        # The wanted logits are the last ``wanted`` tokens of each row.
        last = np.cumsum(wanted)
        logits_at = np.arange(int(wanted.sum()), dtype=np.int64)
        logits_at += np.repeat(np.cumsum(lens) - last, wanted)
        sample_rows = np.flatnonzero(slots.samples[rows] & (ends == slots.num_tokens[rows]))
        sampling = rows[sample_rows]
        slots.tokens[sampling, ends[sample_rows]] = PLACEHOLDER
        slots.num_tokens[sampling] += 1
        requests = [request for slot in rows.tolist() if (request := slots.requests[slot])]
        scores: list[ScoreRows] = []
        for row in np.flatnonzero(slots.scores[rows] & (wanted > 0)).tolist():
            request = requests[row]
            assert request.scoring is not None
            position = int(first_wanted[row])
            num_rows = min(
                int(wanted[row]), request.scoring.start + len(request.scoring.targets) - position
            )
            if num_rows > 0:
                scores.append(ScoreRows(request, position, int(last[row] - wanted[row]), num_rows))
        copies: list[PageCopy] = []
        loads: list[PageLoad] = []
        if requests:  # a step without rows is not launched
            copies, self.kv.copies = self.kv.copies, copies
            loads = self.kv.take_loads()
        return Plan(
            requests=requests,
            slots=rows,
            starts=starts,
            ends=ends,
            logits_at=logits_at,
            sample_rows=sample_rows.astype(np.int32),
            sample_logits=last[sample_rows].astype(np.int64) - 1,
            scores=scores,
            copies=copies,
            loads=loads,
        )

    def _retract_youngest(self, num_pages: int) -> None:
        """Mark the youngest requests, never the oldest, until their own pages make up for
        ``num_pages``; pages of those that are marked to end count as well."""
        slots = self.slots
        for slot in slots.active[:0:-1].tolist():
            request = slots.requests[slot]
            assert request is not None
            if num_pages <= 0:
                return
            shared = len(request.lease.pages) if request.lease is not None else 0
            num_pages -= int(slots.num_pages[slot]) - shared
            if slots.runnable[slot]:
                slots.runnable[slot] = False
                self._retracting.append(request)
                self.admission.retracted()

    # ------------------------------------------------------------ commit

    def commit(self, plan: Plan, result: StepResult) -> list[Sampled]:
        """Take a step's result in; return its new tokens. Then ``settle``."""
        slots = self.slots
        self.admission.note_started()
        self._collect_scores(plan, result)
        holders = np.array([request.slot for request in plan.requests], np.int32)
        present = np.flatnonzero(holders == plan.slots)
        rows = plan.slots[present]
        catching = present[plan.starts[present] < slots.num_known[rows]]
        slots.num_committed[rows] = plan.ends[present]
        sampled = self._append_sampled(plan, result)
        for row in catching.tolist():
            self._caught_up(plan.requests[row], int(plan.starts[row]), int(plan.ends[row]))
        self.metrics.step(plan.num_tokens, len(sampled))
        return sampled

    def _append_sampled(self, plan: Plan, result: StepResult) -> list[Sampled]:
        slots = self.slots
        sampled: list[Sampled] = []
        positions = plan.ends[plan.sample_rows].tolist()
        new_slots: list[int] = []
        new_at: list[int] = []
        new_ids: list[int] = []
        constrained: list[ConstrainedRow] = []
        for index, row in enumerate(plan.sample_rows.tolist()):
            request = plan.requests[row]
            if request.reason is not None:
                continue
            if request.session is not None:
                constrained.append(ConstrainedRow(request, positions[index], index))
                continue
            token = result.token_ids[index]
            request.completion += 1
            new_slots.append(request.slot)
            new_at.append(positions[index])
            new_ids.append(token)
            logprob = result.logprobs.get(index) if request.has_extras else None
            sampled.append(Sampled(request.id, (token,), (logprob,) if logprob else ()))
            if token in request.stops:
                request.matched = token
                self.end(request, "stop")
            elif request.completion >= request.sampling.max_tokens:
                self.end(request, "length")
        slots.tokens[new_slots, new_at] = new_ids
        if constrained:
            sampled += self._constrained.take(constrained, result)
        return sampled

    def _caught_up(self, request: Request, start: int, end: int) -> None:
        """Let others use what a request computed of its known tokens."""
        slots, kv = self.slots, self.kv
        known = int(slots.num_known[request.slot])
        request.computed = max(request.computed, min(end, request.prompt_len) - request.cached)
        self.metrics.computed(request, start, end)
        if end >= known:
            slots.catching[request.slot] = NOT_CATCHING
        num_shared = min(end, known)
        kv.share(request, num_shared)
        if end >= known and not request.samples:
            self.end(request, "length")
            return
        full = num_shared // slots.page_size * slots.page_size
        if end >= known and full < known and len(self.queue):
            token_ids = slots.tokens[request.slot, :known]
            if self.queue.wants(request, token_ids, full):
                kv.share_tail(request, known)
        if request.followers:
            self.queue.let_go(request, full if end < known else known)

    def _collect_scores(self, plan: Plan, result: StepResult) -> None:
        for index, rows in enumerate(plan.scores):
            scoring = rows.request.scoring
            assert scoring is not None
            if rows.request.reason is None:
                assert scoring.start + len(scoring.found) == rows.position
                scoring.found.extend(result.found[index])
                scoring.tops.extend(result.tops[index])

    def note_launched(self) -> None:
        """The planned step is being computed: do what it does not wait for."""
        self.admission.note_started()

    def take_ended(self) -> list[Request]:
        """Return the requests that have ended; ``settle`` frees what they hold."""
        ended, self._ending = self._ending, []
        self._ended += ended
        return ended

    def settle(self) -> None:
        """Free what those that were taken hold, and what has to make room."""
        self.admission.note_started()
        ended, self._ended = self._ended, []
        for request in ended:
            self._free(request)
            self.deadlines.discard(request)
        if self._is_cache_doubtful:
            self.kv.distrust()
            self._is_cache_doubtful = False
        retracting, self._retracting = self._retracting, []
        for request in retracting:
            if request.reason is None:
                self._retract(request)

    def _free(self, request: Request) -> None:
        if request.slot < 0:
            if request in self._fetching:
                self._fetching.remove(request)
            else:
                self.queue.remove(request)
            return
        slots, kv = self.slots, self.kv
        token_ids = slots.tokens[request.slot, : slots.num_committed[request.slot]].copy()
        lease = kv.leave(request, keep=request.reason != "failed")
        slots.give(request)
        request.token_ids = token_ids
        if lease is not None:
            is_root = request.selection is None or request.selection.is_root(request)
            if is_root and request.reason != "failed" and not request.is_branch_ended:
                kv.park(request, lease, token_ids, self._lease_bias_s)
            else:
                lease.release(ended=request.is_branch_ended)
        self.queue.let_go(request, request.max_len)

    def _retract(self, request: Request) -> None:
        """Give up a running request's slot and pages; it resumes where it was."""
        slots, slot = self.slots, request.slot
        request.token_ids = slots.known_tokens(slot).copy()
        request.logits_from = max(request.logits_from, int(slots.num_committed[slot]))
        request.num_retractions += 1
        lease = self.kv.leave(request, keep=True)
        slots.give(request)
        if lease is not None:
            lease.release()
        self.queue.let_go(request, request.max_len)
        request.match_hint = len(request.token_ids)
        self.queue.add(request)
        self.metrics.retractions += 1

    def fail_running(self, message: str) -> None:
        """A step raised: mark every running request as failed and trust nothing it computed. With
        none running, one that waits is the cause, and none of them can be trusted."""
        if not self.slots.num_active:
            for request in [*self.queue, *self._fetching]:
                self.end(request, "failed", message)
        for slot in self.slots.active.tolist():
            request = self.slots.requests[slot]
            assert request is not None
            self.end(request, "failed", message)
            request.reason = "failed"
            request.failure = message
        self._retracting = []
        self._is_cache_doubtful = True


class _Budget:
    """What a step may still take."""

    __slots__ = ("logits", "pages", "tokens")

    def __init__(self, tokens: int, logits: int, pages: int) -> None:
        self.tokens = tokens
        self.logits = logits
        self.pages = pages
