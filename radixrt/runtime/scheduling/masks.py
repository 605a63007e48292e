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
from radixrt.runtime.scheduling.plan import Plan
from radixrt.runtime.scheduling.request import Request
from radixrt.runtime.scheduling.slots import PLACEHOLDER, SlotTable


class Masks(NamedTuple):
    """``bitmask`` int32 [n, ceil(V / 32)] of the sampling rows ``rows`` int64 [n] of a plan."""

    rows: NDArray[np.int64]
    bitmask: NDArray[np.int32]


class Filling(NamedTuple):
    """Masks that threads are writing. Until ``future`` is done nobody touches the matchers."""

    masks: Masks
    requests: list[Request]
    future: Future[None]


class MaskFiller:
    """Fills the masks of the rows that need one, in parallel and without the interpreter lock."""

    def __init__(self, slots: SlotTable, vocab_size: int) -> None:
        self._slots = slots
        self._mask_len = -(-vocab_size // 32)
        self._thread = ThreadPoolExecutor(1, "radixrt-masks")
        self.seconds = 0.0
        """How long filling masks has kept the loop waiting."""

    def begin(self, plan: Plan) -> Filling | None:
        """Start to fill, on threads while the caller goes on; None when no row needs a mask."""
        slots = self._slots
        sampling = plan.slots[plan.sample_rows]
        is_open = slots.tokens[sampling, plan.ends[plan.sample_rows]] == PLACEHOLDER
        candidates = np.flatnonzero(slots.has_matcher[sampling] & is_open)
        rows, requests, matchers = [], [], []
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
                matchers.append(session.matcher)
        if not rows:
            return None
        bitmask = np.empty((len(rows), self._mask_len), np.int32)
        begun = Event()
        fill = matchers[0].fill_batch
        future = self._thread.submit(lambda: fill(matchers, bitmask, begun.set))
        # Else the thread would get the interpreter lock only when the caller has nothing to do.
        begun.wait()
        return Filling(Masks(np.array(rows, np.int64), bitmask), requests, future)

    def finish(self, filling: Filling | None, fail: Callable[[Request, str], None]) -> Masks | None:
        """Return the masks when they are complete. A matcher that gives up fails its own request,
        through ``fail``, and masks nothing."""
        if filling is None:
            return None
        began = time.perf_counter()
        filling.future.result()
        self.seconds += time.perf_counter() - began
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
