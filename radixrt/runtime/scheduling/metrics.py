"""Counters of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from radixrt.cache.explain import Explained
from radixrt.runtime.histogram import FROM_1_MS, Histogram
from radixrt.runtime.scheduling.request import Request
from radixrt.runtime.wire import EngineUsage

SOURCES = ("device", "host", "stores", "coalesced", "computed")
"""Where the tokens of prompts came from."""


@dataclass(slots=True)
class Metrics:
    """Totals since start-up. Tokens, unless the name says otherwise.

    ``computed_tokens`` are prompt tokens computed for the first time by their call,
    ``forward_tokens`` everything that went through the model: generated tokens and what was
    computed again after a retraction (``recomputed_tokens``) too.

    What follows is known when a call ends: ``prompt_tokens_by_source``, the tokens of its prompt by
    who had them (``device``, ``host``, ``stores``; ``coalesced``: another call that computed them
    meanwhile) or ``computed``; ``sampled_tokens`` and ``forced_tokens`` of its text; and ``queue``,
    the seconds from its arrival to its first admission.
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
    prompt_tokens_by_source: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(SOURCES, 0)
    )
    sampled_tokens: int = 0
    forced_tokens: int = 0
    queue: Histogram = field(default_factory=lambda: Histogram(FROM_1_MS))

    def step(self, num_tokens: int, num_sampled: int) -> None:
        """A step was committed."""
        self.steps += 1
        self.forward_tokens += num_tokens
        self.generated_tokens += num_sampled

    def computed(self, request: Request, start: int, end: int) -> None:
        """A chunk of known tokens was committed."""
        if request.num_retractions:
            self.recomputed_tokens += end - start

    def ended(
        self,
        reason: str,
        usage: EngineUsage,
        explained: Explained | None = None,
        waited_s: float = -1.0,
    ) -> None:
        """A call ended; what became of its prompt and how long it waited for its admission are
        known if there was one."""
        self.calls_by_end[reason] = self.calls_by_end.get(reason, 0) + 1
        self.prompt_tokens += usage.prompt
        self.cached_tokens += usage.cached
        self.computed_tokens += usage.computed
        self.evicted_tokens += usage.evicted
        self.forced_tokens += usage.forced
        self.sampled_tokens += usage.completion - usage.forced
        if waited_s >= 0:
            self.queue.observe(waited_s)
        sources = self.prompt_tokens_by_source
        sources["computed"] += usage.computed
        if explained is not None:
            sources["device"] += explained.device
            sources["host"] += explained.host
            sources["stores"] += explained.stores
            sources["coalesced"] += explained.coalesced

    def snapshot(self) -> dict[str, Any]:
        """Return the counters as plain data."""
        counters = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "queue"}
        return counters | {"histograms": {"queue_s": self.queue.snapshot()}}
