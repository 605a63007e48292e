"""The runtime's counters in Prometheus' text format."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest


def exposition(stats: dict[str, Any]) -> bytes:
    """Return the text for the data of a ``Stats`` reply: a gauge for every number in it."""
    registry = CollectorRegistry()
    for name, value in sorted(stats.items()):
        if isinstance(value, int | float) and not isinstance(value, bool):
            Gauge(f"radixrt_{name}", f"{name} of the runtime.", registry=registry).set(value)
    return generate_latest(registry)
