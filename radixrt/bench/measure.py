"""One workload on one engine, however it is reached: what is timed and what is noted."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from radixrt.bench.workloads import WORKLOADS, Prompts
from radixrt.errors import ConfigError, PromptTooLong

COUNTERS = ("steps", "computed_tokens", "cached_tokens", "retractions")
"""Counters of the engine whose growth during a workload is noted."""


class Driver(Protocol):
    """An engine that computes greedy outputs of given lengths."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""

    def generate(self, prompts: Prompts, max_new: list[int]) -> Prompts:
        """Run all prompts at the same time and return their outputs, as long as ``max_new``."""

    def flush(self) -> None:
        """Forget everything that was cached."""

    def stats(self) -> dict[str, Any]:
        """Return the engine's counters."""


class Measurement(msgspec.Struct, frozen=True):
    """One run of a workload. ``digest`` is that of all outputs in order; ``counters`` the growth of
    the engine's."""

    workload: str
    seed: int
    seconds: float
    requests: int
    prompt_tokens: int
    output_tokens: int
    digest: str
    counters: dict[str, int]

    @property
    def rate(self) -> float:
        """Output tokens a second."""
        return self.output_tokens / self.seconds


def check_names(names: Sequence[str]) -> None:
    """Raise ``ConfigError`` for a workload that does not exist."""
    for name in names:
        if name not in WORKLOADS:
            raise ConfigError(f"--only {name}: unknown workload; known: {', '.join(WORKLOADS)}")


def measure(driver: Driver, workload: str, seed: int, scale: float) -> Measurement:
    """Run a workload from an empty cache. Raises ``PromptTooLong`` where it exceeds the context."""
    digest = hashlib.sha256()

    def generate(prompts: Prompts, max_new: list[int]) -> Prompts:
        outputs = driver.generate(prompts, max_new)
        told.extend(outputs)
        return outputs

    told: Prompts = []
    driver.flush()
    before = driver.stats()
    begin = time.perf_counter()
    try:
        counts = WORKLOADS[workload](generate, seed, driver.vocab_size, scale)
    except PromptTooLong as error:
        raise PromptTooLong(f"{workload} at scale {scale:g}: {error}; or lower --scale") from None
    seconds = time.perf_counter() - begin
    after = driver.stats()
    for output in told:
        digest.update(np.asarray([len(output), *output], dtype="<i4").tobytes())
    counters = {key: after[key] - before[key] for key in COUNTERS if key in after}
    return Measurement(
        workload, seed, seconds, **counts, digest=digest.hexdigest()[:16], counters=counters
    )


def best(runs: Sequence[Measurement]) -> dict[str, Measurement]:
    """Return the fastest run of every workload."""
    fastest: dict[str, Measurement] = {}
    for run in runs:
        if run.workload not in fastest or run.seconds < fastest[run.workload].seconds:
            fastest[run.workload] = run
    return fastest
