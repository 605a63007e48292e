"""What programs tell the cache and what it answers, on a real runtime with the shipped model."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

import radixrt as rt
from radixrt.lang.explain import CallExplanation


@pytest.fixture(scope="module")
def backend() -> Iterator[rt.Backend]:
    with rt.Runtime(memory="256MiB") as runtime:
        yield runtime


@rt.function
def ask(s: rt.ProgramState, text: str) -> None:
    s += text + rt.gen("answer", max_tokens=4, temperature=0)


def fresh() -> str:
    """A text that nobody has sent, of some dozen tokens."""
    return f"The number of this test is {uuid.uuid4().hex}, and it is not to be repeated. "


def last(state: rt.ProgramState) -> CallExplanation:
    """The account of the state's last call, whose tokens sum to the prompt."""
    for call in state.explain().calls:
        assert sum(call.outcomes.values()) == call.prompt_tokens
        served = sum(call.outcomes[o] for o in ("device", "host", "disk", "coalesced"))
        missed = sum(miss.end - miss.start for miss in call.misses)
        assert served + missed == call.prompt_tokens
    return state.explain().calls[-1]


def test_every_prompt_token_is_explained(backend: rt.Backend) -> None:
    text = fresh()
    first = last(ask.run(text, backend=backend))
    assert first.outcomes["computed"] == first.prompt_tokens - first.outcomes["device"]
    again = last(ask.run(text, backend=backend))
    assert again.outcomes["device"] == again.prompt_tokens - 1
    assert [miss.cause for miss in again.misses] == ["page_tail"]


def test_a_divergence_shows_the_text_on_both_sides(backend: rt.Backend) -> None:
    text = fresh()
    ask.run(text + "Then came a green bird.", backend=backend)
    (miss,) = last(ask.run(text + "Then came a red fox.", backend=backend)).misses
    assert miss.cause == "diverged"
    assert "green" in miss.details["theirs"]
    assert "red" in miss.details["ours"]
    assert "green" not in miss.details["before"]


def test_a_program_accounts_for_its_selections_and_its_generations(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += fresh() + rt.select("which", ["yes", "no"]) + "." + rt.gen("x", max_tokens=2)
        s += rt.gen("y", max_tokens=2, n=2)

    state = program.run(backend=backend)
    calls = state.explain().calls
    assert [(call.op, call.output) for call in calls[:2]] == [("select", 0), ("generate", 0)]
    assert sorted(call.output for call in calls[2:]) == [0, 1]
    last(state)
    assert "prompt tokens" in str(state.explain())


def test_tenants_share_with_themselves_alone(backend: rt.Backend) -> None:
    text = fresh()
    ask.run(text, backend=backend)
    outsider = last(ask.run(text, backend=backend, tenant="a"))
    assert outsider.outcomes["device"] == 0
    first = outsider.misses[0]
    assert (first.cause, first.details.get("field")) == ("namespace", "tenant")
    assert last(ask.run(text, backend=backend, tenant="a")).outcomes["device"] > 0
    assert last(ask.run(text, backend=backend, tenant="b")).outcomes["device"] == 0
    # What a tenant has sent is nobody's to know.
    secret = fresh()
    ask.run(secret, backend=backend, tenant="a")
    assert {miss.cause for miss in last(ask.run(secret, backend=backend)).misses} <= {
        "never_seen",
        "diverged",
    }


def test_a_private_cache_is_that_of_a_program_and_its_forks(backend: rt.Backend) -> None:
    text = fresh()
    first = ask.run(text, backend=backend, cache="private")
    assert last(ask.run(text, backend=backend, cache="private")).outcomes["device"] == 0
    forks = first.fork(2)
    forks += rt.gen("more", max_tokens=2, temperature=0)
    for fork in forks:
        assert last(fork).outcomes["computed"] < last(fork).prompt_tokens / 2


def test_with_the_cache_off_nothing_is_reused_or_kept(backend: rt.Backend) -> None:
    text = fresh()
    for _ in range(2):
        off = last(ask.run(text, backend=backend, cache="off"))
        assert off.outcomes["computed"] == off.prompt_tokens
        assert [miss.cause for miss in off.misses] == ["disabled"]
    assert last(ask.run(text, backend=backend)).outcomes["device"] < off.prompt_tokens / 2


def test_what_is_warmed_is_there(backend: rt.Backend) -> None:
    text = fresh()
    num_tokens = rt.warm(text, ttl=60, backend=backend)
    call = last(ask.run(text + "Go on:", backend=backend))
    assert call.outcomes["device"] >= num_tokens - 1


def test_a_program_may_lease_release_and_go_on(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += fresh()
        with s.lease(ttl=30):
            s += rt.gen("x", max_tokens=2)
        s.release()
        s += " and " + rt.gen("y", max_tokens=2)

    state = program.run(backend=backend)
    assert state["y"]
    last(state)


def test_what_the_whole_runtime_did_is_told_without_the_tenants(backend: rt.Backend) -> None:
    secret = fresh()
    ask.run(secret, backend=backend, tenant="a")
    ask.run(fresh(), backend=backend)
    told = backend.explain(256)
    assert told.calls
    assert len(backend.explain(1).calls) == 1
    for call in told.calls:
        assert sum(call.outcomes.values()) == call.prompt_tokens
    assert secret.split()[6] not in str(told)
