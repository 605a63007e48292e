"""The masks of a step's constrained rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.plan import Plan
from radixrt.runtime.request import Request
from radixrt.runtime.slots import PLACEHOLDER, SlotTable


class Masks(NamedTuple):
    """``bitmask`` int32 [n, ceil(V / 32)] of the sampling rows ``rows`` int64 [n] of a plan."""

    rows: NDArray[np.int64]
    bitmask: NDArray[np.int32]


class Filling(NamedTuple):
    """Masks that a thread may still be writing. Until then nobody touches the matchers."""

    masks: Masks
    requests: list[Request]
    future: Future[None] | None


class MaskFiller:
    """Fills the masks of the rows that need one, in parallel and without the interpreter lock."""

    def __init__(self, slots: SlotTable, vocab_size: int) -> None:
        self._slots = slots
        self._mask_len = -(-vocab_size // 32)
        self._thread = ThreadPoolExecutor(1, "radixrt-masks")
        self.seconds = 0.0
        """How long filling masks has kept the loop waiting."""

    def begin(self, plan: Plan, *, aside: bool) -> Filling | None:
        """Start to fill; None when no row needs a mask. ``aside``: on a thread, while the caller
        goes on."""
        slots = self._slots
        candidates = np.flatnonzero(slots.has_matcher[plan.slots[plan.sample_rows]])
        rows, requests = [], []
        for row in candidates.tolist():
            at = int(plan.sample_rows[row])
            request = plan.requests[at]
            is_wanted = (
                request.session is not None
                and request.session.needs_mask
                and request.reason is None
                and request.slot == plan.slots[at]
                and request.correction is None
                and slots.tokens[request.slot, plan.ends[at]] == PLACEHOLDER
            )
            if is_wanted:
                rows.append(row)
                requests.append(request)
        if not rows:
            return None
        bitmask = np.empty((len(rows), self._mask_len), np.int32)
        matchers = [r.session.matcher for r in requests if r.session is not None]
        fill = matchers[0].fill_batch
        future = self._thread.submit(fill, matchers, bitmask) if aside else None
        if future is None:
            began = time.perf_counter()
            fill(matchers, bitmask)
            self.seconds += time.perf_counter() - began
        return Filling(Masks(np.array(rows, np.int64), bitmask), requests, future)

    def finish(self, filling: Filling | None, fail: Callable[[Request, str], None]) -> Masks | None:
        """Return the masks when they are complete. A matcher that gives up fails its own request,
        through ``fail``, and masks nothing."""
        if filling is None:
            return None
        if filling.future is not None:
            began = time.perf_counter()
            filling.future.result()
            self.seconds += time.perf_counter() - began
        for row, request in zip(filling.masks.bitmask, filling.requests, strict=True):
            if request.session is None or request.reason is not None:
                continue
            try:
                request.session.restrict(row)
            except GrammarError as error:
                row.fill(-1)
                fail(request, str(error))
        return filling.masks
