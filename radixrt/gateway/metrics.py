"""The runtime's counters in Prometheus' text format.

``METRICS`` is the whole list; what is not in the answer to ``Stats`` (a runtime whose engine is
being restarted, a tier it does not have) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Of ``exposition``'s text."""

Stats = Mapping[str, Any]
Samples = Iterable[tuple[tuple[str, ...], Any]]
"""(values of the labels, value); the value of a histogram is ``Histogram.snapshot()`` of it."""


@dataclass(frozen=True, slots=True)
class Described:
    """One metric: its name without the ending of its kind, what it says, and how it is read."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    read: Callable[[Stats], Samples]
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name that queries use."""
        return self.name + ("_total" if self.kind == "counter" else "")

    def family(self, stats: Stats) -> Metric | None:
        """Return the metric with its values; None when ``stats`` has none."""
        samples = list(self.read(stats))
        if not samples:
            return None
        if self.kind == "histogram":
            histogram = HistogramMetricFamily(self.name, self.help, labels=self.labels)
            for labels, value in samples:
                bounds = [*map(str, value["bounds"]), "+Inf"]
                counts = accumulate(value["counts"])
                histogram.add_metric(
                    labels, list(zip(bounds, counts, strict=True)), sum_value=value["sum"]
                )
            return histogram
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family: CounterMetricFamily | GaugeMetricFamily = make(
            self.name, self.help, labels=self.labels
        )
        for labels, value in samples:
            family.add_metric(labels, float(value))
        return family


def exposition(stats: Stats) -> bytes:
    """Return the page of ``/metrics`` for the data of a reply to ``Stats``."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(stats))
    return generate_latest(registry)


class _Collector:
    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that there are values of."""
        for metric in METRICS:
            family = metric.family(self._stats)
            if family is not None:
                yield family


def _value(key: str) -> Callable[[Stats], Samples]:
    return lambda stats: [((), stats[key])] if key in stats else []


def _by(key: str) -> Callable[[Stats], Samples]:
    """Read a dict: its keys are the values of the one label."""
    return lambda stats: [((name,), value) for name, value in stats.get(key, {}).items()]


def _histogram(key: str) -> Callable[[Stats], Samples]:
    def read(stats: Stats) -> Samples:
        found = stats.get("histograms", {})
        return [((), found[key])] if key in found else []

    return read


def _named(**keys: str) -> Callable[[Stats], Samples]:
    """Read several values under one label: label value → key."""
    return lambda stats: [((label,), stats[key]) for label, key in keys.items() if key in stats]


def _requests(stats: Stats) -> Samples:
    return [
        ((kind, outcome), count)
        for kind, outcomes in stats.get("calls_by_outcome", {}).items()
        for outcome, count in outcomes.items()
    ]


def _sources(stats: Stats) -> Samples:
    names = {"stores": "disk"}
    tokens = stats.get("prompt_tokens_by_source", {})
    return [((names.get(source, source),), count) for source, count in tokens.items()]


def _kv_tokens(stats: Stats) -> Samples:
    if "kv_pages" not in stats:
        return
    size, cached = stats["page_size"], stats["kv_pages_cached"]
    free, evictable = stats["kv_pages_free"], stats["kv_pages_evictable"]
    device = {
        "free": free,
        "evictable": evictable,
        "in_use": cached - evictable,
        "private": stats["kv_pages"] - free - cached,
    }
    for state, pages in device.items():
        yield ("device", state), size * pages
    for name, tier in _tiers(stats):
        yield (name, "cached"), size * tier["ready"]
        if tier["capacity"]:
            yield (name, "free"), size * max(0, tier["capacity"] - tier["ready"])


def _evicted(stats: Stats) -> Samples:
    if "kv_pages_evicted" in stats:
        yield ("device",), stats["page_size"] * stats["kv_pages_evicted"]
    for name, tier in _tiers(stats):
        yield (name,), stats["page_size"] * tier["evicted"]


def _tiers(stats: Stats) -> list[tuple[str, Mapping[str, Any]]]:
    return list(stats.get("hicache", {}).get("tiers", {}).items())


def _moved(direction: str) -> Callable[[Stats], Samples]:
    return lambda stats: [((name,), tier[direction]) for name, tier in _tiers(stats)]


METRICS = (
    Described(
        "radixrt_requests",
        "counter",
        "Ended requests. Outcomes: stop, length, abort, chosen, client_gone, or the code of the "
        "failure (cancelled, deadline, engine_fault, too_long, bad_request, ...).",
        _requests,
        ("kind", "outcome"),
    ),
    Described(
        "radixrt_requests_rejected",
        "counter",
        "Requests that were not taken, by the bound they met; retryable.",
        _by("rejected"),
        ("reason",),
    ),
    Described("radixrt_requests_open", "gauge", "Unanswered requests.", _value("client_calls")),
    Described("radixrt_requests_running", "gauge", "Requests in the batch.", _value("running")),
    Described(
        "radixrt_requests_waiting", "gauge", "Requests that wait for admission.", _value("waiting")
    ),
    Described(
        "radixrt_time_to_first_token_seconds",
        "histogram",
        "From the arrival of a generation to its first token.",
        _histogram("ttft_s"),
    ),
    Described(
        "radixrt_inter_token_seconds",
        "histogram",
        "Between the steps that brought a generation tokens.",
        _histogram("itl_s"),
    ),
    Described(
        "radixrt_request_seconds",
        "histogram",
        "From the arrival of a request to its answer.",
        _histogram("duration_s"),
    ),
    Described(
        "radixrt_queue_seconds",
        "histogram",
        "From the arrival of a request at the engine to its admission.",
        _histogram("queue_s"),
    ),
    Described(
        "radixrt_prompt_tokens",
        "counter",
        "Prompt tokens by who had them: device, host, disk (or a remote store), coalesced (another "
        "request computed them meanwhile), computed.",
        _sources,
        ("source",),
    ),
    Described(
        "radixrt_generated_tokens",
        "counter",
        "Tokens of ended generations: sampled, or forced as the only possible ones.",
        _named(sampled="sampled_tokens", forced="forced_tokens"),
        ("kind",),
    ),
    Described(
        "radixrt_recomputed_tokens",
        "counter",
        "Tokens computed again after a retraction.",
        _value("recomputed_tokens"),
    ),
    Described(
        "radixrt_kv_tokens",
        "gauge",
        "Tokens that fit into the pages of a tier in each state. On the device: free, evictable "
        "(cached, nobody uses them), in_use (cached and used), private (of running requests). "
        "Below: cached, free.",
        _kv_tokens,
        ("tier", "state"),
    ),
    Described(
        "radixrt_evicted_tokens",
        "counter",
        "Cached tokens given up for others.",
        _evicted,
        ("tier",),
    ),
    Described(
        "radixrt_tier_read_pages", "counter", "Pages read from a tier.", _moved("read"), ("tier",)
    ),
    Described(
        "radixrt_tier_written_pages",
        "counter",
        "Pages written to a tier.",
        _moved("written"),
        ("tier",),
    ),
    Described(
        "radixrt_retractions",
        "counter",
        "Running requests put back because memory ran short.",
        _value("retractions"),
    ),
    Described(
        "radixrt_grammar_seconds",
        "counter",
        "Time for constraints: compile (on threads), mask (the engine's loop waited).",
        _named(compile="grammar_compile_s", mask="grammar_mask_s"),
        ("work",),
    ),
    Described(
        "radixrt_grammars",
        "counter",
        "Constraints by what became of them: compiled, refused, timed_out.",
        _named(
            compiled="grammars_compiled", refused="grammars_refused", timed_out="grammars_timed_out"
        ),
        ("outcome",),
    ),
    Described("radixrt_steps", "counter", "Steps of the engine.", _value("steps")),
    Described(
        "radixrt_step_tokens",
        "counter",
        "Tokens that went through the model.",
        _value("forward_tokens"),
    ),
    Described("radixrt_step_failures", "counter", "Steps that raised.", _value("step_failures")),
    Described(
        "radixrt_loop_lag_seconds",
        "histogram",
        "How long a message waits until the engine's loop looks at it, asked every second.",
        _histogram("loop_lag_s"),
    ),
    Described(
        "radixrt_engine_up", "gauge", "Whether the engine's process serves.", _value("engine_up")
    ),
    Described(
        "radixrt_engine_restarts",
        "counter",
        "Deaths of the engine's process.",
        _value("engine_restarts"),
    ),
    Described("radixrt_clients", "gauge", "Connected clients over ZeroMQ.", _value("clients")),
    Described("radixrt_branches", "gauge", "Open branches.", _value("branches")),
)
"""Every metric."""
