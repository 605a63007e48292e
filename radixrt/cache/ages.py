"""Ages of pages in buckets: half octaves from one second to two hours."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

import numpy as np
from numpy.typing import NDArray

EDGES: Final[NDArray[np.float64]] = np.concatenate([[0.0], 2.0 ** np.arange(0, 13.5, 0.5)])
"""Lower ends of the buckets in seconds; the last one has no upper end."""

UPPER: Final[NDArray[np.float64]] = np.append(EDGES[1:], 2 * EDGES[-1])
"""Upper ends; the last one is what it is taken for."""

NUM_AGES: Final = len(EDGES)

EDGE_LIST: Final[list[float]] = EDGES.tolist()
OLDEST_S: Final[float] = float(UPPER[-1])


def age_bucket(age_s: float) -> int:
    """Return the bucket of an age."""
    return bisect_right(EDGE_LIST, age_s) - 1 if age_s > 0.0 else 0
