"""The page of /metrics: every metric moves, none lies about a scenario, the docs list them all."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from frontend_harness import Harness, text
from prometheus_client.parser import text_string_to_metric_families
from runtime_process import ask, hello, receive_until
from tiny_tokenizer import write_model_directory

from radixrt.config import RuntimeConfig
from radixrt.gateway.metrics import METRICS, exposition
from radixrt.protocol import (
    Append,
    Cancel,
    Chosen,
    Close,
    Constraint,
    Failed,
    Finished,
    Generate,
    Open,
    Part,
    Reply,
    Sampling,
    Select,
    Stats,
    ToRuntime,
)
from radixrt.runtime.engine import assemble
from radixrt.runtime.local import LocalRuntime
from radixrt.runtime.wire import Ready
from radixrt.transport import LocalTransport

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
PAGES = 60
LONG = "The quick brown fox jumps over the lazy dog. " * 8


def samples(page: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return (name, values of the labels) → value."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


class Client:
    def __init__(self, transport: LocalTransport) -> None:
        self.transport = transport
        self.ids = iter(range(1, 10_000))
        hello(transport)

    def ask(self, prompt: str, wanted: type, **fields: Any) -> Any:
        branch = next(self.ids)
        messages: list[ToRuntime] = [Open(branch), Append(branch, (Part("text", prompt),))]
        make = Select if "options" in fields else Generate
        (answer,) = ask(self.transport, [*messages, make(next(self.ids), branch, **fields)], 1)
        assert isinstance(answer, wanted), answer
        self.transport.send([Close(branch, keep=True)])
        return answer

    def stats(self) -> dict[str, Any]:
        (reply,) = ask(self.transport, [Stats(next(self.ids))], 1)
        assert isinstance(reply, Reply)
        return reply.data


@pytest.fixture(scope="module")
def loops() -> list[Any]:
    return []


@pytest.fixture(scope="module")
def client(loops: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A runtime of the shipped model with few pages, a host tier and a disk."""
    patch = pytest.MonkeyPatch()
    planned = assemble.plan_memory
    patch.setattr(
        assemble,
        "plan_memory",
        lambda *given, **named: dataclasses.replace(planned(*given, **named), num_pages=PAGES),
    )

    def build(config: RuntimeConfig, channel: Any) -> Any:
        loops.append(assemble.build_loop(config, channel))
        return loops[-1]

    config = RuntimeConfig(
        host_memory="32MiB", disk=tmp_path_factory.mktemp("kv"), store_on="once", max_running=8
    )
    runtime = LocalRuntime(config, build_loop=build)
    patch.undo()
    yield Client(runtime.transport())
    runtime.shutdown()


def work(client: Client) -> list[dict[str, Any]]:
    """Do something of everything that a healthy runtime does; return its counters meanwhile."""
    for _ in range(2):
        client.ask(LONG, Finished, sampling=Sampling(max_tokens=4, temperature=0))
    client.ask("Yes or no? ", Chosen, options=("yes", "no"))
    schema = json.dumps(
        {"type": "object", "properties": {"name": {"enum": ["x"]}}, "required": ["name"]}
    )
    client.ask("JSON: ", Finished, constraint=Constraint("json_schema", schema))
    # More at once than there are pages for: prefixes are evicted, the youngest is put back.
    calls: list[ToRuntime] = []
    for number in range(6):
        branch = next(client.ids)
        calls += [
            Open(branch),
            Append(branch, (Part("text", f"{number} {LONG}"),)),
            Generate(
                next(client.ids), branch, Sampling(max_tokens=250, temperature=0, ignore_eos=True)
            ),
        ]
    client.transport.send([*calls, Stats(next(client.ids))])
    got: list[Any] = []
    busy: list[dict[str, Any]] = []
    while sum(isinstance(message, Finished) for message in got) < 6:
        seen = len(got)
        got += receive_until(client.transport, bool, timeout_s=60)
        replies = [message.data for message in got[seen:] if isinstance(message, Reply)]
        busy += replies
        if replies:
            client.transport.send([Stats(next(client.ids))])
    receive_until(client.transport, bool)  # the answer to the last question
    assert not any(isinstance(message, Failed) for message in got)
    return busy


def moved(page: bytes) -> set[str]:
    names = {name for (name, _), value in samples(page).items() if value > 0}
    return {re.sub("_(count|sum|bucket)$", "", name) for name in names}


def test_every_metric_moves(client: Client, loops: list[Any], tmp_path: Path) -> None:
    pages = [exposition(stats) for stats in work(client)]
    # A step that raises fails what runs, and nothing else.
    engine = loops[0].engine
    launch = engine.launch

    def broken(plan: Any) -> Any:
        engine.launch = launch
        raise RuntimeError("a cosmic ray")

    engine.launch = broken
    client.ask("x", Failed)
    branch, call = next(client.ids), next(client.ids)
    prompt = Append(branch, (Part("text", "x"),))
    client.transport.send([Open(branch), prompt, Generate(call, branch), Cancel(call)])
    (cancelled,) = receive_until(client.transport, bool)
    assert isinstance(cancelled, Failed)
    pages.append(exposition(client.stats()))

    # What the shipped model's runtime has no occasion for: its engine dies, calls are too many.
    harness = Harness(write_model_directory(tmp_path), max_calls_per_client=1)
    other = harness.client()
    other.send(Open(1), Append(1, (text("fox"),)), Generate(1, 1), Generate(2, 1))
    harness.frontend.on_engine_down("killed")
    harness.inbox.clear()
    other.send(Stats(9))
    (reply,) = (m for m in harness.inbox[b"c"] if isinstance(m, Reply))
    pages.append(exposition(reply.data))

    still = {metric.full_name for metric in METRICS} - set().union(*map(moved, pages))
    assert not still
    assert samples(pages[-1])["radixrt_engine_up", ()] == 0
    assert samples(pages[-1])["radixrt_requests_rejected_total", ("client_calls",)] == 1


def test_the_numbers_are_those_of_what_was_done(client: Client) -> None:
    before = samples(exposition(client.stats()))
    finished = client.ask(
        "Once upon a time",
        Finished,
        sampling=Sampling(max_tokens=7, temperature=0, ignore_eos=True),
    )
    again = client.ask(
        "Once upon a time",
        Finished,
        sampling=Sampling(max_tokens=7, temperature=0, ignore_eos=True),
    )
    page = exposition(client.stats())
    after = samples(page)

    def gained(name: str, *labels: str) -> float:
        return after.get((name, labels), 0.0) - before.get((name, labels), 0.0)

    outputs = [finished.outputs[0], again.outputs[0]]
    reasons = [output.finish_reason.type for output in outputs]
    for reason in set(reasons):
        assert gained("radixrt_requests_total", "generate", reason) == reasons.count(reason)
    generated = sum(len(output.token_ids) for output in outputs)
    assert gained("radixrt_generated_tokens_total", "sampled") == generated
    assert gained("radixrt_time_to_first_token_seconds_count") == 2
    assert gained("radixrt_inter_token_seconds_count") == generated - 2
    assert gained("radixrt_queue_seconds_count") == 2
    sources = ("device", "host", "disk", "coalesced", "computed")
    by_source = {source: gained("radixrt_prompt_tokens_total", source) for source in sources}
    usages = [finished.usage, again.usage]
    assert by_source["computed"] == sum(usage.computed_tokens for usage in usages)
    assert sum(by_source.values()) == sum(usage.prompt_tokens for usage in usages)
    device = sum(
        v for (n, labels), v in after.items() if n == "radixrt_kv_tokens" and "device" in labels
    )
    assert device == (PAGES - 1) * 16, "the states of the device's pages do not make up all of them"


def test_buckets_are_cumulative_and_end_in_the_count(client: Client) -> None:
    client.ask("Bucket", Finished, sampling=Sampling(max_tokens=3))
    for family in text_string_to_metric_families(exposition(client.stats()).decode()):
        if family.type == "histogram":
            counts = [s.value for s in family.samples if s.name.endswith("_bucket")]
            (count,) = (s.value for s in family.samples if s.name.endswith("_count"))
            assert counts == sorted(counts)
            assert counts[-1] == count


def test_a_runtime_that_says_little_has_a_short_page() -> None:
    assert samples(exposition({"clients": 2})) == {("radixrt_clients", ()): 2.0}


def test_names_are_prometheus_names_and_every_one_is_documented() -> None:
    documented = DOCS.read_text(encoding="utf-8")
    for metric in METRICS:
        assert re.fullmatch("radixrt_[a-z_]+", metric.name)
        assert f"`{metric.full_name}`" in documented
        assert metric.help.endswith(".")


def test_a_new_engine_counts_as_up(tmp_path: Path) -> None:
    harness = Harness(write_model_directory(tmp_path))
    client = harness.client()
    harness.frontend.on_engine_down("killed")
    harness.frontend.on_engine([Ready(512, 512, {})])
    client.send(Stats(1))
    harness.step()
    (reply,) = (m for m in harness.inbox[b"c"] if isinstance(m, Reply))
    found = samples(exposition(reply.data))
    assert found["radixrt_engine_up", ()] == 1
    assert found["radixrt_engine_restarts_total", ()] == 1
