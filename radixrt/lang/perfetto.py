"""Traces in the JSON form that Perfetto (ui.perfetto.dev) and Chrome open.

A program is a process, it and each of its forks a thread. A call is a slice; in it lie the prompt,
up to the first text, with what the cache had of it and what was computed in proportion to their
tokens, and the generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from radixrt.lang.trace_file import Trace
from radixrt.lang.tracing import CallEnded, Forked, ProgramBegan, ProgramEnded


@dataclass(slots=True)
class _Track:
    """A program, or a fork, while its records are gathered."""

    number: int
    root: int
    parent: int
    name: str
    began: float
    ended: float
    error: str = ""
    waits_until: float = 0.0
    """When what it was forked from had what it needs."""
    calls: list[CallEnded] = field(default_factory=list)


def perfetto(traces: Sequence[Trace]) -> dict[str, Any]:
    """Return the object of a trace file: ``traceEvents`` and what it is of."""
    events: list[dict[str, Any]] = []
    num_processes = 0
    start = min((_began(trace) for trace in traces if trace.records), default=0.0)
    for trace in traces:
        tracks = _tracks(trace)
        pids: dict[int, int] = {}
        for track in tracks.values():
            if track.root not in pids:
                num_processes += 1
                pids[track.root] = num_processes
            events += _events(track, pids[track.root], start)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"models": sorted({trace.model for trace in traces}), "start": start},
    }


def _began(trace: Trace) -> float:
    first = trace.records[0]
    return first.began if isinstance(first, CallEnded) else first.at


def _tracks(trace: Trace) -> dict[int, _Track]:
    tracks: dict[int, _Track] = {}
    for record in trace.records:
        match record:
            case ProgramBegan(track, name, at):
                tracks[track] = _Track(track, track, 0, name, at, at)
            case Forked(track, parent, at):
                of = tracks.get(parent)
                root, before = (of.root, f"{of.name} › ") if of is not None else (track, "")
                number = sum(one.parent == parent for one in tracks.values())
                tracks[track] = _Track(track, root, parent, f"{before}fork {number}", at, at)
            case CallEnded():
                if (caller := tracks.get(record.track)) is not None:
                    caller.calls.append(record)
                    caller.ended = max(caller.ended, record.ended)
            case ProgramEnded(track, at, error):
                if (program := tracks.get(track)) is not None:
                    program.ended, program.error = max(program.ended, at), error
    for one in tracks.values():  # a program is not over before what was forked from it
        program = tracks[one.root]
        program.ended = max(program.ended, one.ended)
        if (parent_track := tracks.get(one.parent)) is not None:
            before_fork = [c.ended for c in parent_track.calls if c.began <= one.began]
            one.waits_until = max([parent_track.waits_until, *before_fork])
    return tracks


def _events(track: _Track, pid: int, start: float) -> Iterator[dict[str, Any]]:
    where = {"pid": pid, "tid": track.number}
    if track.number == track.root:
        yield {**where, "ph": "M", "name": "process_name", "args": {"name": track.name}}
    yield {**where, "ph": "M", "name": "thread_name", "args": {"name": track.name}}
    yield {**where, "ph": "M", "name": "thread_sort_index", "args": {"sort_index": track.number}}

    def piece(name: str, begin: float, end: float, kind: str, **args: Any) -> dict[str, Any]:
        # In whole nanoseconds: what touches must not overlap by a rounding.
        since, until = _ns(begin - start), _ns(end - start)
        ts, dur = since / 1000, max(0, until - since) / 1000
        return {
            **where, "ph": "X", "name": name, "cat": kind, "ts": ts, "dur": dur, "args": args,
        }  # fmt: skip

    args = {"error": track.error} if track.error else {}
    yield piece(track.name, track.began, track.ended, "program", **args)
    if track.parent:
        ts = _ns(track.began - start) / 1000
        flow = {"cat": "fork", "name": "fork", "id": track.number, "pid": pid, "ts": ts}
        yield {**flow, "ph": "s", "tid": track.parent}
        yield {**flow, "ph": "f", "bp": "e", "tid": track.number}
    free = track.waits_until
    for call in sorted(track.calls, key=lambda call: (call.began, call.ended)):
        # Calls are sent ahead; the runtime takes those of a branch one after the other.
        began = min(max(call.began, free), call.ended)
        yield from _call(call, began, piece)
        free = max(free, call.ended)


def _ns(seconds: float) -> int:
    return round(1e9 * seconds)


def _call(call: CallEnded, began: float, piece: Any) -> Iterator[dict[str, Any]]:
    usage = call.usage
    args: dict[str, Any] = {**usage, "line": f"{call.file}:{call.line}"}
    if began > call.began:
        args["sent_ahead_ms"] = round(1000 * (began - call.began), 3)
    if call.finish:
        args["finish"] = call.finish
    if call.error:
        args["error"] = call.error
    title = f"{call.op} {call.name}".strip()
    yield piece(title, began, call.ended, call.op, **args)
    if not usage:
        return
    # A selection is all prompt: its options are scored, not generated.
    first = max(call.first if call.first is not None else call.ended, began)
    prompt, cached = usage["prompt_tokens"], usage["cached_tokens"]
    computed = usage["computed_tokens"]
    yield piece(f"prompt {prompt}", began, first, "prompt", tokens=prompt)
    border = began + (first - began) * cached / max(1, cached + computed)
    if cached:
        yield piece(f"cached {cached}", began, border, "cached", tokens=cached)
    if computed:
        yield piece(f"computed {computed}", border, first, "computed", tokens=computed)
    if call.first is not None:
        made, forced = usage["completion_tokens"], usage["forced_tokens"]
        yield piece(f"generated {made}", first, call.ended, "generated", tokens=made, forced=forced)
