"""What programs tell the cache, as the runtime receives it."""

from __future__ import annotations

import pytest
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.errors import InvalidArgument
from radixrt.lang.pauses import Pauses
from radixrt.lang.source import Where
from radixrt.protocol import Close, Explain, Generate, Hold, Open, Release, Select


def test_a_lease_is_asked_for_and_taken_back(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "text"
        with s.lease(ttl=60, priority=2):
            s += rt.gen("x")
        s.release()

    program.run(backend=backend)
    branch = runtime.sent(Open)[0].branch
    told = runtime.sent(Hold, Generate, Release)
    assert [type(message) for message in told] == [Hold, Generate, Hold, Release]
    assert told[0] == Hold(branch, 60.0, 2)
    assert told[2].ttl_s == 0
    assert told[3] == Release(branch)


@pytest.mark.parametrize(
    "options", [{"ttl": 0}, {"ttl": -1}, {"ttl": 1e9}, {"ttl": True}, {"priority": 4}]
)
def test_a_lease_of_no_time_or_priority_is_refused(
    backend: rt.Backend, options: dict[str, int]
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s.lease(**options)

    with pytest.raises(InvalidArgument, match=next(iter(options))):
        program.run(backend=backend)


def test_leaving_a_lease_of_a_closed_state_is_nothing(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        with s.lease():
            s.close()

    program.run(backend=backend)


def test_the_tenant_and_the_cache_of_a_program_are_those_of_its_branches(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def program(s: rt.ProgramState, which: str = "") -> None:
        s += "text" + rt.gen("x")

    program.run(backend=backend)
    program.run(backend=backend, tenant="a", cache="private")
    program.run_batch([{"which": "1"}], backend=backend, tenant="b")
    opened = [(message.tenant, message.cache) for message in runtime.sent(Open)]
    assert opened == [("", "shared"), ("a", "private"), ("b", "shared")]
    with pytest.raises(InvalidArgument, match="cache"):
        program.run(backend=backend, cache="some")
    with pytest.raises(InvalidArgument, match="tenant"):
        program.run_batch([{"which": "1"}], backend=backend, tenant=3)


def test_a_body_that_takes_a_tenant_gets_it_itself(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def program(s: rt.ProgramState, tenant: str) -> str:
        s += tenant + rt.gen("x")
        return tenant

    assert program.run(backend=backend, tenant="mine").ret_value == "mine"
    assert runtime.sent(Open)[0].tenant == ""


def test_warming_computes_keeps_and_leaves(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    assert rt.warm("0123456789", ttl=30, tenant="a", backend=backend) == 10
    opened, generated, held = runtime.sent(Open, Generate, Hold)
    assert opened.tenant == "a"
    assert generated.sampling.max_tokens == 1
    assert held == Hold(opened.branch, 30.0, 1)
    backend.shutdown()
    assert [message.keep for message in runtime.sent(Close)] in ([True], [])


def test_the_pause_after_a_line_is_measured_and_expected_the_next_time(
    runtime: ScriptedRuntime, backend: rt.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Time:
        now = 100.0

        @staticmethod
        def monotonic() -> float:
            return Time.now

    monkeypatch.setattr("radixrt.lang.branch.time", Time)
    monkeypatch.setattr("radixrt.lang.call.time", Time)

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "a" + rt.gen("first")
        assert s["first"]
        Time.now += 30.0  # a tool call
        s += "b" + rt.gen("second")
        s += rt.select("third", ["x", "y"])

    for _ in range(2):
        program.run(backend=backend)
    calls = runtime.sent(Generate, Select)
    assert [call.pause_s for call in calls[:3]] == [None, None, None]
    first, second, third = (call.pause_s for call in calls[3:])
    assert first == pytest.approx(30.0)
    assert second is not None
    assert second < 1.0, "it went on at once"
    assert third is None, "nothing has ever gone on from there"


def test_one_long_pause_does_not_decide_what_is_expected() -> None:
    pauses, site = Pauses(), Where("agent.py", 3)
    assert pauses.expected(site) is None
    for _ in range(20):
        pauses.note(site, 2.0)
    pauses.note(site, 2000.0)
    expected = pauses.expected(site)
    assert expected is not None
    assert 2.0 < expected < 8.0
    for _ in range(30):
        pauses.note(site, 50.0)
    expected = pauses.expected(site)
    assert expected == pytest.approx(50.0, rel=0.3)


def test_an_explanation_reads_like_one(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    account = {
        "op": "generate",
        "call": 7,
        "output": 0,
        "prompt_tokens": 100,
        "outcomes": {
            **{"device": 10, "host": 20, "disk": 5, "coalesced": 5},
            **{"computed": 60, "unreached": 0},
        },
        "misses": [
            {"start": 40, "end": 70, "cause": "evicted", "tier": "host", "ago_s": 2.5}
            | {"for": "call 3"},
            {"start": 70, "end": 90, "cause": "diverged", "before": "a", "ours": "b"}
            | {"theirs": "c"},
            {"start": 90, "end": 99, "cause": "not_worth", "predicted_ms": 1.25},
            {"start": 99, "end": 100, "cause": "namespace", "field": "tenant"},
        ],
    }
    runtime.accounts = [account]

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "text" + rt.gen("x")

    explained = program.run(backend=backend).explain()
    assert explained.outcomes["computed"] == 60
    assert explained.causes == {"evicted": 30, "diverged": 20, "not_worth": 9, "namespace": 1}
    told = str(explained)
    for part in (
        "100 prompt tokens: 10 device, 20 host, 5 disk, 5 coalesced, 60 computed",
        "evicted from host 2.5 s before, for call 3",
        "diverged at token 70: after 'a' came 'b', cached was 'c'",
        "1.2 ms",
        "tenant",
    ):
        assert part in told
    assert backend.explain(5).calls == explained.calls
    asked = runtime.sent(Explain)
    assert [(message.branch is None, message.last) for message in asked] == [(False, 16), (True, 5)]
