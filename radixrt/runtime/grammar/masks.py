"""The masks of a step's constrained rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.plan import Plan
from radixrt.runtime.request import Request
from radixrt.runtime.slots import SlotTable


class Masks(NamedTuple):
    """``bitmask`` int32 [n, ceil(V / 32)] of the sampling rows ``rows`` int64 [n] of a plan."""

    rows: NDArray[np.int64]
    bitmask: NDArray[np.int32]


def fill_masks(
    plan: Plan, slots: SlotTable, vocab_size: int, fail: Callable[[Request, str], None]
) -> Masks | None:
    """Return the masks of the plan's constrained rows, None when there are none.

    A matcher that gives up fails its own request, through ``fail``, and masks nothing.
    """
    rows = np.flatnonzero(slots.has_matcher[plan.slots[plan.sample_rows]])
    if len(rows) == 0:
        return None
    bitmask = np.full((len(rows), -(-vocab_size // 32)), -1, np.int32)
    for index, row in enumerate(rows.tolist()):
        request = plan.requests[plan.sample_rows[row]]
        if request.matcher is None or request.reason is not None:
            continue
        try:
            request.matcher.fill(bitmask[index])
        except GrammarError as error:
            bitmask[index] = -1
            fail(request, str(error))
    return Masks(rows, bitmask)
