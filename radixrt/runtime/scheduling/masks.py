"""The masks of a step's constrained rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.llguidance import LlguidanceMatcher
from radixrt.runtime.scheduling.plan import Plan
from radixrt.runtime.scheduling.request import Request
from radixrt.runtime.scheduling.slots import PLACEHOLDER, SlotTable

FEW = 4
"""So many masks are filled at once under a forward: another thread would take longer to begin."""

HANDOVER_S = 0.0005
"""How long the loop waits for a thread to begin; where cores are short it is late."""


class Masks(NamedTuple):
    """``bitmask`` int32 [n, ceil(V / 32)] of the sampling rows ``rows`` int64 [n] of a plan."""

    rows: NDArray[np.int64]
    bitmask: NDArray[np.int32]


class Filling(NamedTuple):
    """Masks of ``requests``, of which threads are writing those that are ``unknown``, by row. Until
    ``future`` is done nobody touches the matchers; None when all are known."""

    masks: Masks
    requests: list[Request]
    unknown: list[tuple[LlguidanceMatcher, int]]
    future: Future[None] | None


class MaskFiller:
    """Fills the masks of the rows that need one, in parallel and without the interpreter lock."""

    def __init__(
        self,
        slots: SlotTable,
        vocab_size: int,
        room: Callable[[tuple[int, int]], NDArray[np.int32]],
    ) -> None:
        """``room`` returns an array of a shape to be filled, new in every step."""
        self._slots = slots
        self._mask_len = -(-vocab_size // 32)
        self._room = room
        self._thread = ThreadPoolExecutor(1, "radixrt-masks")
        self.seconds = 0.0
        """How long filling masks has kept the loop waiting."""

    def begin(self, plan: Plan, at_once: int = 0) -> Filling | None:
        """Start to fill, on threads while the caller goes on; None when no row needs a mask. Up to
        ``at_once`` masks are filled before it returns."""
        slots = self._slots
        sampling = plan.slots[plan.sample_rows]
        is_open = slots.tokens[sampling, plan.ends[plan.sample_rows]] == PLACEHOLDER
        candidates = np.flatnonzero(slots.has_matcher[sampling] & is_open)
        rows, requests, sessions = [], [], []
        at, holders = plan.sample_rows[candidates].tolist(), sampling[candidates].tolist()
        for row, index, slot in zip(candidates.tolist(), at, holders, strict=True):
            request = plan.requests[index]
            session = request.session
            is_wanted = (
                session is not None
                and request.slot == slot
                and request.reason is None
                and request.correction is None
                and session.needs_mask
            )
            if session is not None and is_wanted:
                rows.append(row)
                requests.append(request)
                sessions.append(session)
        if not rows:
            return None
        bitmask = self._room((len(rows), self._mask_len))
        unknown = []
        for at_row, session in enumerate(sessions):
            known = session.matcher.known_mask
            if known is None:
                unknown.append((session.matcher, at_row))
            else:
                bitmask[at_row] = known
        return Filling(
            Masks(np.array(rows, np.int64), bitmask),
            requests,
            unknown,
            self._fill(unknown, bitmask, at_once),
        )

    def _fill(
        self, rows: list[tuple[LlguidanceMatcher, int]], bitmask: NDArray[np.int32], at_once: int
    ) -> Future[None] | None:
        if not rows:
            return None
        begun, fill = Event(), rows[0][0].fill_rows
        if len(rows) <= at_once:
            began = time.perf_counter()
            fill(rows, bitmask, begun.set)
            self.seconds += time.perf_counter() - began
            return None
        future = self._thread.submit(lambda: fill(rows, bitmask, begun.set))
        # Else the thread would get the interpreter lock only when the caller has nothing to do.
        begun.wait(HANDOVER_S)
        return future

    def finish(self, filling: Filling | None, fail: Callable[[Request, str], None]) -> Masks | None:
        """Return the masks when they are complete. A matcher that gives up fails its own request,
        through ``fail``, and masks nothing."""
        if filling is None:
            return None
        if filling.future is not None:
            began = time.perf_counter()
            filling.future.result()
            self.seconds += time.perf_counter() - began
        for matcher, row in filling.unknown:
            matcher.learn(filling.masks.bitmask[row])
        for row, request in zip(filling.masks.bitmask, filling.requests, strict=True):
            session = request.session
            if session is None or session.is_mask_complete or request.reason is not None:
                continue
            try:
                session.restrict(row)
            except GrammarError as error:
                row.fill(-1)
                fail(request, str(error))
        return filling.masks
