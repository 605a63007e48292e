"""What a tracer is told, and what becomes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import radixrt as rt
from radixrt.errors import InvalidArgument, ProgramError
from radixrt.lang.otel import OpenTelemetryTracer
from radixrt.lang.perfetto import perfetto
from radixrt.lang.trace_file import TraceFile, read_traces
from radixrt.lang.tracing import CallEnded, Forked, ProgramBegan, ProgramEnded, Record

ROOT = Path(__file__).parent.parent.parent


class Both:
    """Hands records to several tracers."""

    def __init__(self) -> None:
        self.model = ""
        self.records: list[Record] = []
        self.others: list[Any] = []

    def note(self, record: Record) -> None:
        self.records.append(record)
        for other in self.others:
            other.model = self.model
            other.note(record)


@pytest.fixture(scope="module")
def tracer() -> Both:
    return Both()


@pytest.fixture(scope="module")
def backend(tracer: Both) -> Iterator[rt.Backend]:
    with rt.Runtime(memory="128MiB", tracer=tracer) as backend:
        yield backend


@rt.function
def tree(s: rt.ProgramState) -> None:
    s += "A tree of thoughts begins with one, and every branch of it goes on from there. "
    s += rt.gen("first", max_tokens=4, temperature=0)
    forks = s.fork(2)
    for i, fork in enumerate(forks):
        fork += f" {i} " + rt.gen("next", max_tokens=6, temperature=0, ignore_eos=True)
    forks.join()
    s += rt.select("last", ["yes", "no"])


def run(backend: rt.Backend, tracer: Both, others: list[Any]) -> list[Record]:
    tracer.records.clear()
    tracer.others = others
    state = tree.run(backend=backend)
    state.sync()
    deadline = time.monotonic() + 20
    while not any(isinstance(record, ProgramEnded) for record in tracer.records):
        assert time.monotonic() < deadline  # it is noted by the thread that ended its last call
        time.sleep(0.005)
    tracer.others = []
    return list(tracer.records)


def calls(records: list[Record]) -> list[CallEnded]:
    return [record for record in records if isinstance(record, CallEnded)]


def test_a_tracer_sees_the_program_its_forks_and_its_calls(
    backend: rt.Backend, tracer: Both
) -> None:
    records = run(backend, tracer, [])
    assert tracer.model == "nano"
    (began,) = [r for r in records if isinstance(r, ProgramBegan)]
    (ended,) = [r for r in records if isinstance(r, ProgramEnded)]
    forks = [r for r in records if isinstance(r, Forked)]
    assert began.name == "tree"
    assert ended.track == began.track
    assert [fork.parent for fork in forks] == [began.track] * 2
    made = calls(records)
    assert sorted((c.op, c.name) for c in made) == [
        ("gen", "first"), ("gen", "next"), ("gen", "next"), ("select", "last"),
    ]  # fmt: skip
    for call in made:
        assert began.at <= call.began <= call.ended
        assert Path(call.file) == Path(__file__)
        usage = call.usage
        assert usage["cached_tokens"] + usage["computed_tokens"] == usage["prompt_tokens"]
        if call.op == "gen":
            assert call.first is not None
            assert call.began <= call.first <= call.ended
    assert ended.at >= max(call.ended for call in made if call.track == began.track)


def test_a_failure_is_told(backend: rt.Backend, tracer: Both) -> None:
    @rt.function
    def fails(s: rt.ProgramState) -> None:
        s += "A" + rt.gen("a", max_tokens=4)
        s += rt.gen("b", max_tokens=10**6)

    tracer.records.clear()
    with pytest.raises(ProgramError):
        fails.run(backend=backend)
    (failed,) = [call for call in calls(tracer.records) if call.error]
    assert failed.name == "b"
    assert failed.usage == {}
    assert "max_tokens" in failed.error


def test_a_tracer_that_fails_does_not_fail_the_program(
    backend: rt.Backend, tracer: Both, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        model = ""

        def note(self, record: Record) -> None:
            raise RuntimeError("broken")

    run(backend, tracer, [Broken()])
    assert "the tracer failed" in caplog.text


def slices(trace: dict[str, Any]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            found.setdefault((event["pid"], event["tid"]), []).append(event)
    return found


def check_nesting(events: list[dict[str, Any]]) -> None:
    """Slices of a thread lie within each other or apart, as viewers need them."""
    open_until: list[int] = []
    spans = [(round(1000 * e["ts"]), round(1000 * (e["ts"] + e["dur"]))) for e in events]
    for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        while open_until and open_until[-1] <= begin:
            open_until.pop()
        assert not open_until or end <= open_until[-1], (begin, end, events)
        open_until.append(end)


def test_a_trace_for_perfetto_has_forks_as_tracks_and_shows_what_was_cached(
    backend: rt.Backend, tracer: Both, tmp_path: Path
) -> None:
    file = TraceFile(tmp_path)
    records = run(backend, tracer, [file])
    file.close()
    (read,) = read_traces(tmp_path)
    assert list(read.records) == records
    assert read.model == "nano"
    trace = json.loads(json.dumps(perfetto([read])))
    tracks = slices(trace)
    assert len(tracks) == 3
    assert len({pid for pid, _ in tracks}) == 1
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert names == ["tree", "tree › fork 0", "tree › fork 1"]
    for events in tracks.values():
        check_nesting(events)
        assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in events)
    for call in calls(records):
        of = [e for e in tracks[1, call.track] if e["cat"] in ("cached", "computed")]
        told = {e["cat"]: e["args"]["tokens"] for e in of}
        if call.op == "gen" and call.name == "next":
            assert told["cached"] == call.usage["cached_tokens"] > 0
            assert told["computed"] == call.usage["computed_tokens"]
    assert len([e for e in trace["traceEvents"] if e["ph"] in "sf"]) == 4


def test_spans_hang_beneath_their_program_with_the_names_of_the_conventions(
    backend: rt.Backend, tracer: Both
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    run(backend, tracer, [OpenTelemetryTracer(provider)])
    provider.shutdown()
    spans = exporter.get_finished_spans()
    (program,) = [s for s in spans if s.name == "invoke_agent tree"]
    forks = [s for s in spans if s.name == "fork"]
    made = [s for s in spans if s.name in ("text_completion nano", "select nano")]
    assert len(spans) == 1 + 2 + 4
    assert program.parent is None
    assert all(s.parent and s.parent.span_id == program.context.span_id for s in forks)
    beneath = {program.context.span_id, *(s.context.span_id for s in forks)}
    for span in made:
        assert span.parent is not None
        assert span.parent.span_id in beneath
        attributes = span.attributes or {}
        assert attributes["gen_ai.request.model"] == "nano"
        assert attributes["gen_ai.usage.input_tokens"] > 0
        assert attributes["gen_ai.usage.output_tokens"] >= (span.name != "select nano")
        assert attributes["gen_ai.usage.cache_read.input_tokens"] >= 0
        assert span.start_time <= span.end_time
    assert all(span.start_time >= program.start_time for span in spans)


SCRIPT = """
import sys
import radixrt as rt

@rt.function
def hello(s, word):
    s += word + rt.gen("answer", max_tokens=2)

with rt.Runtime(memory="128MiB") as backend:
    hello.run_batch([{"word": word} for word in sys.argv[2:]], backend=backend)
sys.exit(int(sys.argv[1]))
"""


def test_the_command_traces_a_script_and_ends_as_it_does(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(SCRIPT)
    output = tmp_path / "out.json"
    command = [sys.executable, "-m", "radixrt", "trace", "-o", str(output), str(script)]
    process = subprocess.run(
        [*command, "3", "one", "two"], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 3, process.stderr
    assert "2 programs" in process.stderr
    trace = json.loads(output.read_bytes())
    assert len({pid for pid, _ in slices(trace)}) == 2
    assert trace["otherData"]["models"] == ["nano"]


def test_a_script_that_is_not_there_is_refused(tmp_path: Path) -> None:
    from radixrt.cli.trace import run_traced

    with pytest.raises(InvalidArgument, match="script"):
        run_traced(tmp_path / "none.py", [], tmp_path / "out.json")
    (tmp_path / "some.py").touch()
    with pytest.raises(InvalidArgument, match="output"):
        run_traced(tmp_path / "some.py", [], tmp_path / "nowhere" / "out.json")


def test_a_file_that_is_no_trace_is_refused_and_a_cut_one_is_read_as_far_as_it_goes(
    tmp_path: Path,
) -> None:
    file = TraceFile(tmp_path)
    file.note(ProgramBegan(1, "one", 1.0))
    file.note(ProgramEnded(1, 2.0))
    file.close()
    file.path.write_bytes(file.path.read_bytes()[:-5])
    (trace,) = read_traces(tmp_path)
    assert trace.records == (ProgramBegan(1, "one", 1.0),)
    (tmp_path / "x.trace.jsonl").write_text('["other", {}]\n')
    with pytest.raises(InvalidArgument, match="RADIXRT_TRACE"):
        read_traces(tmp_path)
