"""What it takes to bring tokens back: copying or computing, predicted from what was measured."""

from __future__ import annotations

import math

FORGET = 0.98
"""Weight of an observation after the next one: the last fifty count."""


class LinearCost:
    """Seconds as ``fixed + each * size``, fitted by least squares to the latest observations.

    One observation gives a cost in proportion to size; none predicts ``math.inf`` or, as
    ``prior`` = (fixed, each), what is given.
    """

    def __init__(self, prior: tuple[float, float] | None = None) -> None:
        self._prior = prior
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def is_known(self) -> bool:
        """Whether anything was observed."""
        return self._n > 0

    def observe(self, size: float, seconds: float) -> None:
        """Take a measurement in; sizes and times that are not positive say nothing."""
        if size <= 0 or seconds <= 0:
            return
        self._n = FORGET * self._n + 1
        self._x = FORGET * self._x + size
        self._y = FORGET * self._y + seconds
        self._xx = FORGET * self._xx + size * size
        self._xy = FORGET * self._xy + size * seconds

    def predict(self, size: float) -> float:
        """Return the expected seconds for ``size``."""
        fixed, each = self.fit()
        return fixed + each * size if math.isfinite(each) else math.inf

    def fit(self) -> tuple[float, float]:
        """Return (fixed, each), both at least 0."""
        if not self.is_known:
            return self._prior or (math.inf, math.inf)
        spread = self._n * self._xx - self._x * self._x
        if spread <= 1e-9 * self._n * self._xx:
            return 0.0, self._y / self._x
        each = (self._n * self._xy - self._x * self._y) / spread
        fixed = (self._y - each * self._x) / self._n
        if each <= 0:
            return 0.0, self._y / self._x
        if fixed <= 0:
            return 0.0, self._xy / self._xx
        return fixed, each


class Costs:
    """Predictions in seconds: of computing tokens, and by tier of bringing pages one tier up."""

    def __init__(self) -> None:
        self.compute = LinearCost()
        self.tiers: dict[str, LinearCost] = {}

    def tier(self, name: str) -> LinearCost:
        """Return the cost of reading pages of one tier; by default nothing until it is known."""
        return self.tiers.setdefault(name, LinearCost(prior=(0.0, 0.0)))
