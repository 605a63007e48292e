"""Counters of the frontend: how calls went for those who wait for them."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from radixrt.protocol import Chosen, Failed, Finished, ToClient
from radixrt.runtime.frontend.calls import Call, GenerateCall, SelectCall
from radixrt.runtime.histogram import FROM_1_MS, FROM_100_US, Histogram

Rejection = Literal["draining", "client_calls", "queue", "clients"]
"""Why a call or a client was not taken: the runtime ends, or a bound of a client's calls, of all
calls or of the clients was reached."""


class CallMetrics:
    """Totals since the start of the frontend. Times are seconds.

    ``ttft`` is from a call's arrival to its first token, ``itl`` between the steps that brought it
    tokens, ``duration`` from its arrival to its answer. Outcomes of a generation are ``stop``,
    ``length`` and ``abort``, of a selection ``chosen``, of both the codes of failures, and
    ``client_gone``.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.rejected: Counter[Rejection] = Counter()
        self.ttft = Histogram(FROM_1_MS)
        self.itl = Histogram(FROM_100_US)
        self.duration = Histogram(FROM_1_MS)
        self.loop_lag = Histogram(FROM_100_US)
        self.engine_restarts = 0

    def tokens(self, call: GenerateCall, now: float) -> None:
        """A step brought a generation tokens."""
        if call.last_tokens:
            self.itl.observe(now - call.last_tokens)
        else:
            self.ttft.observe(now - call.arrived)
        call.last_tokens = now

    def answered(self, call: Call, message: ToClient | None, now: float) -> None:
        """A call ended in its answer, or without one because its client is gone."""
        kind = _kind(call)
        if kind:
            self.outcomes[kind, _outcome(message)] += 1
            self.duration.observe(now - call.arrived)

    def snapshot(self) -> dict[str, Any]:
        """Return the counters as plain data."""
        outcomes: dict[str, dict[str, int]] = {"generate": {}, "select": {}}
        for (kind, outcome), count in self.outcomes.items():
            outcomes[kind][outcome] = count
        return {
            "calls_by_outcome": outcomes,
            "rejected": dict(self.rejected),
            "engine_restarts": self.engine_restarts,
            "histograms": {
                "ttft_s": self.ttft.snapshot(),
                "itl_s": self.itl.snapshot(),
                "duration_s": self.duration.snapshot(),
                "loop_lag_s": self.loop_lag.snapshot(),
            },
        }


def _kind(call: Call) -> str:
    match call:
        case GenerateCall():
            return "generate"
        case SelectCall():
            return "select"
    return ""


def _outcome(message: ToClient | None) -> str:
    match message:
        case Finished(outputs=outputs):
            return outputs[0].finish_reason.type
        case Chosen():
            return "chosen"
        case Failed(code=code):
            return code
    return "client_gone"
