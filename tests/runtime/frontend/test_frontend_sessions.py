"""Sessions and branches: order, forks, failures, cancels, limits, ends of clients and engines."""

from __future__ import annotations

from pathlib import Path

import pytest
from frontend_harness import Client, Harness, text

from radixrt.errors import ProtocolError
from radixrt.protocol import (
    Append,
    Cancel,
    Chunk,
    Close,
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
    Pong,
    Read,
    Reply,
    Sampling,
    Select,
    Welcome,
)
from radixrt.runtime.frontend.branches import Segment
from radixrt.runtime.frontend.sessions import MISSED_PINGS, PING_INTERVAL_S
from radixrt.runtime.wire import Release, Run, unpack_ids


def prompts(harness: Harness) -> list[list[int]]:
    return [unpack_ids(m.token_ids).tolist() for m in harness.engine.received if isinstance(m, Run)]


def generate(call: int, branch: int, **sampling: int) -> Generate:
    return Generate(call, branch, Sampling(**{"max_tokens": 4, **sampling}))


def test_hello_is_answered_with_limits_and_model(harness: Harness) -> None:
    harness.frontend.on_client(b"new", [Hello()])
    (welcome,) = harness.inbox[b"new"]
    assert isinstance(welcome, Welcome)
    assert welcome.limits.max_context == 512
    assert welcome.model.has_chat_template
    assert welcome.model.vocab_size == harness.tokenizer.vocab_size


def test_another_protocol_version_is_refused(harness: Harness) -> None:
    harness.frontend.on_client(b"new", [Hello(version=99)])
    (failed,) = harness.inbox[b"new"]
    assert isinstance(failed, Failed)
    assert failed.code == "unsupported"


def test_a_call_without_a_session_is_refused_and_answered_once(harness: Harness) -> None:
    harness.frontend.on_client(b"stranger", [generate(5, 1)])
    failed, goodbye = harness.inbox[b"stranger"]
    assert isinstance(failed, Failed)
    assert (failed.call, failed.code) == (5, "bad_request")
    assert isinstance(goodbye, Goodbye)


def test_operations_are_pipelined_and_done_in_order(harness: Harness) -> None:
    client = harness.client()
    client.send(
        Open(1),
        Append(1, (text("one"),)),
        generate(1, 1),
        Append(1, (text(" two"),)),
        generate(2, 1),
        generate(3, 1),
        Close(1),
    )
    harness.run()
    answers = [m for m in client.take() if isinstance(m, Finished)]
    assert [m.call for m in answers] == [1, 2, 3]
    ids = prompts(harness)
    assert ids[1][: len(ids[0])] == ids[0]
    assert ids[2][: len(ids[1])] == ids[1]
    assert not harness.engine.leases


def test_a_fork_is_the_parent_as_it_was_at_that_point(harness: Harness) -> None:
    client = harness.client()
    client.send(
        Open(1),
        Append(1, (text("root"),)),
        generate(1, 1),
        Open(2, parent=1),  # before call 1 has run
        Append(1, (text(" left"),)),
        Append(2, (text(" right"),)),
        Open(3, parent=2),
        generate(2, 1),
        generate(3, 2),
        generate(4, 3),
    )
    harness.run()
    assert len([m for m in client.take() if isinstance(m, Finished)]) == 4
    first, left, right, nested = prompts(harness)
    generated = len(first) + 4
    assert left[:generated] == right[:generated]
    assert left != right
    assert nested == right


def test_fork_costs_no_copy_and_flat_ids_are_right() -> None:
    import numpy as np

    root = Segment(None, "text", "a", np.arange(3, dtype=np.int32))
    root.is_shared = True
    left = Segment(root, "text", "b", np.array([7], dtype=np.int32))
    right = Segment(root, "text", "c", np.array([8, 9], dtype=np.int32))
    assert left.parent is right.parent is root
    assert left.flat().tolist() == [0, 1, 2, 7]
    assert right.flat().tolist() == [0, 1, 2, 8, 9]
    assert Segment(left, "text", "", np.array([], dtype=np.int32)).flat().tolist() == [0, 1, 2, 7]
    assert left.flat().tolist() == [0, 1, 2, 7]


def test_forks_nested_a_thousand_deep_in_one_message(harness: Harness) -> None:
    client = harness.client()
    client.send(Open(1), Append(1, (text("fox"),)), generate(1, 1))
    client.send(*(Open(n + 1, parent=n) for n in range(1, 1000)), generate(2, 1000))
    harness.run()
    assert [m.call for m in client.take() if isinstance(m, Finished)] == [1, 2]


def test_fork_of_an_empty_branch(harness: Harness) -> None:
    client = harness.client()
    client.send(Open(1), Open(2, parent=1), Append(2, (text("x"),)), generate(1, 2))
    assert client.answer(1, Finished)


def test_what_follows_a_failed_operation_of_a_branch_fails(harness: Harness) -> None:
    client = harness.client()
    client.send(Open(1), Append(1, (text("x"),)), Open(9))
    client.send(generate(1, 1, top_k=-1), Open(2, parent=1), generate(2, 1), generate(3, 2))
    client.send(generate(4, 9))
    harness.run()
    answers = {m.call: m for m in client.take() if isinstance(m, Failed | Finished)}
    assert [getattr(answers[call], "code", "") for call in (1, 2, 3, 4)] == [
        "bad_request",
        "branch_failed",
        "branch_failed",
        "",
    ]
    assert "top_k" in getattr(answers[2], "message", "")


def test_what_came_before_a_cancelled_call_is_not_harmed(harness: Harness) -> None:
    client = harness.client()
    client.send(Open(1), Append(1, (text("x"),)))
    client.send(generate(1, 1), generate(2, 1), generate(3, 1), Cancel(3), generate(4, 1))
    harness.run()
    answers = {m.call: m for m in client.take() if isinstance(m, Failed | Finished)}
    codes = {call: getattr(answer, "code", "") for call, answer in answers.items()}
    assert codes == {1: "", 2: "", 3: "cancelled", 4: "branch_failed"}


def test_a_running_call_can_be_cancelled(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("x"))
    call = client.generate(max_tokens=400)
    harness.step()
    client.send(Cancel(call))
    assert client.failure(call).code == "cancelled"
    assert not harness.engine.running


def test_cancel_of_an_unknown_call_is_nothing(harness: Harness) -> None:
    client = harness.client()
    client.send(Cancel(77))
    assert client.take() == []


def test_a_deadline_ends_a_call(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("x"))
    call = client.generate(max_tokens=400, deadline_s=2.0)
    waiting = client.generate(max_tokens=400)
    harness.step()
    harness.frontend.on_tick()
    assert client.take() == []
    harness.now += 3
    harness.frontend.on_tick()
    answers = [m for m in client.take() if isinstance(m, Failed)]
    assert [(m.call, m.code) for m in answers] == [(call, "deadline"), (waiting, "branch_failed")]
    assert harness.frontend.next_deadline is None
    harness.run()
    assert not harness.engine.running


@pytest.mark.parametrize("deadline_s", [0.0, -1.0])
def test_a_deadline_has_to_be_positive(harness: Harness, deadline_s: float) -> None:
    client = harness.client()
    client.open(1, text("x"))
    assert client.failure(client.generate(deadline_s=deadline_s)).code == "bad_request"


def test_duplicate_ids_are_refused_and_the_first_call_is_answered(harness: Harness) -> None:
    client = harness.client()
    client.send(Open(1), Open(2), Append(1, (text("x"),)), Append(2, (text("y"),)))
    client.send(generate(1, 1), generate(1, 2), generate(2, 2))
    (refused, follower) = client.take()
    assert isinstance(refused, Failed)
    assert (refused.call, refused.code) == (None, "bad_request")
    assert isinstance(follower, Failed)
    assert follower.code == "branch_failed"
    assert client.answer(1, Finished)
    client.send(Open(1))
    (refused,) = client.take()
    assert isinstance(refused, Failed)
    assert (refused.branch, refused.code) == (1, "bad_request")


@pytest.mark.parametrize(
    "message",
    [generate(1, 42), Select(1, 42, ("a",)), Read(1, 42)],
    ids=["generate", "select", "read"],
)
def test_an_unknown_branch_is_refused(harness: Harness, message: Message) -> None:
    client = harness.client()
    client.send(message)
    failed = client.failure(1)
    assert failed.code == "bad_request"
    assert "branch=42" in failed.message


def test_append_and_fork_of_an_unknown_branch_are_refused_by_branch(harness: Harness) -> None:
    client = harness.client()
    client.send(Append(42, (text("x"),)), Open(3, parent=42))
    assert [(m.branch, m.code) for m in client.take() if isinstance(m, Failed)] == [
        (42, "bad_request"),
        (3, "bad_request"),
    ]


def test_a_closed_branch_is_gone_for_what_comes_later_only(harness: Harness) -> None:
    client = harness.client()
    client.send(Open(1), Append(1, (text("x"),)), generate(1, 1), Close(1), generate(2, 1))
    harness.run()
    (finished,) = (m for m in client.take() if isinstance(m, Finished))
    assert finished.call == 1
    assert any(isinstance(message, Release) for message in harness.engine.received)
    assert harness.frontend._sessions[b"c"].branches == {}


def test_bad_parts_fail_the_branch_by_name(harness: Harness) -> None:
    client = harness.client()
    client.open(1, Part("tokens", token_ids=(10**7,)))
    (refused,) = client.take()
    assert isinstance(refused, Failed)
    assert (refused.call, refused.branch) == (None, 1)
    assert "token_ids" in refused.message
    assert client.failure(client.generate()).code == "branch_failed"


def test_a_frame_that_is_no_message_gets_a_typed_answer(harness: Harness) -> None:
    client = harness.client()
    harness.frontend.on_client(b"c", [ProtocolError("unknown message 'boo'")])
    (failed,) = client.take()
    assert isinstance(failed, Failed)
    assert (failed.call, failed.code) == (None, "bad_request")


def test_more_calls_than_a_client_may_have_are_refused_for_now(model_directory: Path) -> None:
    harness = Harness(model_directory, max_calls_per_client=2, max_queue=3)
    first, second = harness.client(b"a"), harness.client(b"b")
    for client in (first, second):
        for branch in (1, 2, 3):
            client.open(branch, text("x"))
            client.generate(branch, call=branch)
    failed = [m for m in [*first.take(), *second.take()] if isinstance(m, Failed)]
    assert [(m.code, m.retryable) for m in failed] == [("overloaded", True)] * 3
    assert "this client" in failed[0].message
    assert "this runtime" in failed[1].message
    harness.run()
    assert harness.frontend.num_calls == 0


def test_more_clients_than_the_runtime_takes_are_refused(model_directory: Path) -> None:
    harness = Harness(model_directory, max_clients=1)
    harness.client(b"a")
    harness.frontend.on_client(b"b", [Hello()])
    (failed,) = harness.inbox[b"b"]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable) == ("overloaded", True)


def is_gone(harness: Harness, client: Client) -> bool:
    harness.run()
    harness.step()
    counters = harness.client(b"watcher").stats()
    return (counters["branches"], counters["leases"], counters["running"]) == (0, 0, 0)


def busy(harness: Harness) -> Client:
    client = harness.client()
    client.open(1, text("x"))
    client.open(2, text("y"))
    client.finish(2, max_tokens=1)
    client.generate(1, max_tokens=400, stream=True)
    harness.step()
    return client


def test_a_client_that_says_goodbye_leaves_nothing(harness: Harness) -> None:
    client = busy(harness)
    client.send(Goodbye())
    assert is_gone(harness, client)


def test_a_client_that_cannot_be_reached_leaves_nothing(harness: Harness) -> None:
    client = busy(harness)
    harness.frontend.drop_client(client.name)
    assert is_gone(harness, client)


def test_a_client_without_a_sign_of_life_is_dropped(harness: Harness) -> None:
    client = busy(harness)
    harness.now += MISSED_PINGS * PING_INTERVAL_S - 1
    harness.frontend.on_tick()
    client.send(Ping(1))
    harness.now += 2
    harness.frontend.on_tick()
    assert harness.frontend.num_clients == 1
    harness.now += MISSED_PINGS * PING_INTERVAL_S
    harness.frontend.on_tick()
    assert any(isinstance(m, Goodbye) for m in client.take())
    assert is_gone(harness, client)


def test_a_ping_is_answered_by_the_engine_loop(harness: Harness) -> None:
    client = harness.client()
    client.send(Ping(7))
    assert client.take() == []
    harness.step()
    assert client.take() == [Pong(7, 0.25)]


def test_flush_and_stats_are_answered(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("x"))
    assert client.stats()["branches"] == 1
    client.send(Flush(50))
    assert client.answer(50, Reply).data == {"evicted_pages": 0}


def test_calls_fail_with_the_engine_and_branches_live_on(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("one"))
    client.open(2, text("two"))
    first = client.finish(1, max_tokens=3)
    lost = client.generate(2, max_tokens=300)
    harness.step()
    harness.frontend.on_engine_down("the engine process died (exit code -9)")
    failed = client.failure(lost) if not harness.engine.running.clear() else None
    assert failed is not None
    assert (failed.code, failed.retryable) == ("engine_fault", True)
    # While it is away calls wait, pings are answered, cancelled calls never reach the next engine.
    waiting = client.generate(1, max_tokens=2)
    client.open(3, text("x"))
    client.send(Cancel(client.generate(3, max_tokens=2)), Ping(3))
    assert any(isinstance(m, Pong) for m in client.take())
    harness.engine.received.clear()
    harness.frontend.on_engine([harness.engine.ready()])
    again = client.answer(waiting, Finished)
    assert again.usage.prompt_tokens == first.usage.prompt_tokens + 3
    assert len(prompts(harness)) == 1


def test_a_failure_of_the_engine_reaches_its_call(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("x"))
    call = client.generate(max_tokens=100)
    harness.step()
    harness.engine.fail("constraint: not yet", "unsupported")
    assert client.failure(call).code == "unsupported"


def test_while_draining_new_calls_are_refused_and_running_ones_end(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("x"))
    client.open(2, text("y"))
    running = client.generate(1)
    harness.frontend.drain()
    refused = client.generate(2)
    assert client.failure(refused).code == "overloaded"
    assert client.answer(running, Finished)
    harness.frontend.close("bye")
    assert any(isinstance(m, Goodbye) for m in client.take())


def test_close_fails_what_still_runs(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("x"))
    call = client.generate(max_tokens=400)
    harness.frontend.close("shutting down")
    answers = client.take()
    assert [m.code for m in answers if isinstance(m, Failed) and m.call == call] == ["engine_fault"]


def test_chunks_stop_with_the_call(harness: Harness) -> None:
    client = harness.client()
    client.open(1, text("x"))
    call = client.generate(max_tokens=400, stream=True)
    harness.step()
    client.send(Cancel(call))
    client.take()
    harness.run()
    assert not any(isinstance(m, Chunk) for m in client.take())
