"""Programs as OpenTelemetry spans, with the attribute names of its GenAI conventions.

``Runtime(tracer=OpenTelemetryTracer())``. A program is a span, so is each of its forks, beneath it,
and each generation and selection beneath its program or fork. Needs ``pip install radixrt[otel]``
and an exporter of your choice, set up in your tracer provider.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from radixrt.lang.tracing import CallEnded, Forked, ProgramBegan, ProgramEnded, Record

MAX_OPEN = 65_536
"""Tracks whose spans are kept for what comes later; the oldest are given up first."""

SYSTEM = "radixrt"


class OpenTelemetryTracer:
    """A ``Tracer`` that makes spans.

    A fork's span ends with its program's, at its own last call. What is done with a state after its
    program has ended becomes spans beneath the program's all the same.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        """``provider`` makes the spans; None is the one that is set for the process."""
        self.model = ""
        self._tracer = (provider or trace.get_tracer_provider()).get_tracer("radixrt")
        self._spans: OrderedDict[int, Span] = OrderedDict()
        self._last: dict[int, float] = {}
        self._forks: dict[int, list[int]] = {}
        self._roots: dict[int, int] = {}
        self._lock = threading.Lock()

    def note(self, record: Record) -> None:
        """See ``Tracer``."""
        with self._lock:
            match record:
                case ProgramBegan(track, name, at):
                    attributes = {
                        "gen_ai.operation.name": "invoke_agent",
                        "gen_ai.agent.name": name,
                    }
                    self._begin(track, None, f"invoke_agent {name}", at, attributes)
                    self._roots[track] = track
                case Forked(track, parent, at):
                    self._begin(track, parent, "fork", at, {})
                    root = self._roots.get(parent, parent)
                    self._roots[track] = root
                    self._forks.setdefault(root, []).append(track)
                case CallEnded():
                    self._call(record)
                case ProgramEnded(track, at, error):
                    self._end(track, at, error)

    def _begin(
        self, track: int, parent: int | None, name: str, at: float, attributes: dict[str, Any]
    ) -> None:
        span = self._tracer.start_span(
            name,
            self._context(parent),
            SpanKind.INTERNAL,
            {"gen_ai.provider.name": SYSTEM, **attributes},
            start_time=_ns(at),
        )
        self._spans[track] = span
        self._last[track] = at
        while len(self._spans) > MAX_OPEN:
            oldest, given_up = self._spans.popitem(last=False)
            given_up.end(_ns(self._last.pop(oldest)))
            self._roots.pop(oldest, None)
            self._forks.pop(oldest, None)

    def _context(self, track: int | None) -> Any:
        span = self._spans.get(track) if track is not None else None
        return None if span is None else trace.set_span_in_context(span)

    def _call(self, call: CallEnded) -> None:
        operation = "text_completion" if call.op == "gen" else "select"
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": SYSTEM,
            "gen_ai.request.model": self.model,
            "gen_ai.response.model": self.model,
            "code.file.path": call.file,
            "code.line.number": call.line,
        }
        if call.name:
            attributes["radixrt.variable"] = call.name
        if call.usage:
            usage = call.usage
            attributes |= {
                "gen_ai.usage.input_tokens": usage["prompt_tokens"],
                "gen_ai.usage.output_tokens": usage["completion_tokens"],
                "gen_ai.usage.cache_read.input_tokens": usage["cached_tokens"],
                "radixrt.usage.computed_tokens": usage["computed_tokens"],
                "radixrt.usage.forced_tokens": usage["forced_tokens"],
            }
        if call.finish:
            attributes["gen_ai.response.finish_reasons"] = (call.finish,)
        if call.first is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = call.first - call.began
        span = self._tracer.start_span(
            f"{operation} {self.model}",
            self._context(call.track),
            SpanKind.CLIENT,
            attributes,
            start_time=_ns(call.began),
        )
        if call.error:
            _fail(span, call.error)
        span.end(_ns(call.ended))
        if call.track in self._last:
            self._last[call.track] = max(self._last[call.track], call.ended)

    def _end(self, root: int, at: float, error: str) -> None:
        for track in self._forks.pop(root, ()):
            if (span := self._spans.get(track)) is not None:
                span.end(_ns(max(self._last[track], 0.0)))
        if (span := self._spans.get(root)) is not None:
            if error:
                _fail(span, error)
            span.end(_ns(at))


def _fail(span: Span, error: str) -> None:
    span.set_status(Status(StatusCode.ERROR, error))
    span.set_attribute("error.type", error.partition(":")[0])


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
