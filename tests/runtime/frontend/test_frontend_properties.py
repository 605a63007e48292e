"""Whatever clients send and whenever the engine steps: one answer a call, nothing left behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from frontend_harness import Harness
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radixrt.protocol import (
    Append,
    Cancel,
    Chosen,
    Close,
    Credit,
    Failed,
    Finished,
    Flush,
    Generate,
    Goodbye,
    Hello,
    Message,
    Open,
    Part,
    Ping,
    Read,
    Reply,
    Sampling,
    Select,
    Stats,
)

branches = st.integers(1, 3)
samplings = st.builds(
    Sampling,
    max_tokens=st.sampled_from([0, 1, 5, 600]),
    n=st.sampled_from([1, 1, 2]),
    stop=st.sampled_from([(), ("e",), ("",)]),
)
parts = st.builds(
    Part,
    st.sampled_from(["text", "tokens", "role_begin", "role_end"]),
    st.sampled_from(["user", "assistant", " fox", "é"]),
    st.sampled_from([(), (5, 6), (-1,)]),
)
actions = st.lists(
    st.one_of(
        st.builds(Open, branches, st.none() | branches),
        st.builds(Append, branches, st.lists(parts, max_size=2).map(tuple)),
        st.builds(Generate, st.just(0), branches, samplings, stream=st.booleans()),
        st.builds(Select, st.just(0), branches, st.sampled_from([("a", "bc"), ()])),
        st.builds(Read, st.just(0), branches),
        st.builds(Flush, st.just(0)),
        st.builds(Stats, st.just(0)),
        st.builds(Close, branches),
        st.builds(Cancel, st.integers(1, 20)),
        st.builds(Credit, st.integers(1, 20), st.integers(-1, 2)),
        st.builds(Ping, st.integers(0, 5)),
        st.sampled_from(["step", "step", "engine down", "engine up", "time"]),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=actions, leaves=st.booleans())
def test_every_call_is_answered_once_and_nothing_is_left(
    model_directory: Path, actions: list[Message | str], leaves: bool
) -> None:
    harness = Harness(model_directory, max_context=256)
    harness.engine.reply = lambda ids, n: 20 + (ids[-1] * 7 + n) % 300
    client = harness.client()
    asked: list[int] = []
    for action in actions:
        if action == "step" and harness.frontend._engine.is_up:
            harness.step()
        elif action == "engine down" and harness.frontend._engine.is_up:
            harness.frontend.on_engine_down("gone")
            harness.engine.running.clear()
            harness.engine.leases.clear()
            harness.engine._replies.clear()
        elif action == "engine up" and not harness.frontend._engine.is_up:
            harness.frontend.on_engine([harness.engine.ready()])
        elif action == "time":
            harness.now += 4.0
            harness.frontend.on_tick()
            client.send(Ping(9))
        elif not isinstance(action, str):
            if isinstance(action, Generate | Select | Read | Flush | Stats):
                asked.append(len(asked) + 1)
                object.__setattr__(action, "call", asked[-1])
            client.send(action)
    if not harness.frontend._engine.is_up:
        harness.frontend.on_engine([harness.engine.ready()])
    if leaves:
        client.send(Goodbye())
    harness.run()
    answers = Counter(
        m.call for m in client.take() if isinstance(m, Finished | Chosen | Reply | Failed)
    )
    answers.pop(None, None)
    if leaves:
        assert all(count == 1 for count in answers.values())
    else:
        assert answers == Counter(asked)
        client.send(Goodbye())
    harness.step()
    harness.frontend.on_client(b"watcher", [Hello()])
    counters = harness.client(b"watcher").stats()
    assert (counters["clients"], counters["branches"], counters["client_calls"]) == (1, 0, 1)
    assert (counters["leases"], counters["running"]) == (0, 0)
    assert not harness.frontend._calls._streaming
    assert harness.frontend._engine._waiting == {}
