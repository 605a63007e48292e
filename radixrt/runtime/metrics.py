"""Counters of the engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from radixrt.runtime.request import Request
from radixrt.runtime.wire import EngineUsage


@dataclass(slots=True)
class Metrics:
    """Totals since start-up. Tokens, unless the name says otherwise.

    ``computed_tokens`` are prompt tokens computed for the first time by their call,
    ``forward_tokens`` everything that went through the model: generated tokens and what was
    computed again after a retraction (``recomputed_tokens``) too.
    """

    calls: int = 0
    calls_by_end: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    evicted_tokens: int = 0
    generated_tokens: int = 0
    forward_tokens: int = 0
    recomputed_tokens: int = 0
    retractions: int = 0
    steps: int = 0
    step_failures: int = 0
    loop_lag_ms: float = 0.0

    def step(self, num_tokens: int, num_sampled: int) -> None:
        """A step was committed."""
        self.steps += 1
        self.forward_tokens += num_tokens
        self.generated_tokens += num_sampled

    def computed(self, request: Request, start: int, end: int) -> None:
        """A chunk of known tokens was committed."""
        if request.num_retractions:
            self.recomputed_tokens += end - start

    def ended(self, reason: str, usage: EngineUsage) -> None:
        """A call ended."""
        self.calls_by_end[reason] = self.calls_by_end.get(reason, 0) + 1
        self.prompt_tokens += usage.prompt
        self.cached_tokens += usage.cached
        self.computed_tokens += usage.computed
        self.evicted_tokens += usage.evicted

    def snapshot(self) -> dict[str, Any]:
        """Return the counters as plain data."""
        return asdict(self)
