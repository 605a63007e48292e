from __future__ import annotations

import contextlib
import sys
import threading
import types

import pytest
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.errors import (
    EngineFault,
    InvalidArgument,
    ProgramError,
    RuntimeUnavailable,
    TransportError,
)
from radixrt.lang.client import Client
from radixrt.protocol import Chunk, Failed, Finished, Goodbye, Usage, Welcome
from radixrt.transport import LocalTransport


@rt.function
def program(s: rt.ProgramState) -> None:
    s += "a" + rt.gen("x")


def failure_while_waiting(runtime: ScriptedRuntime, backend: rt.Backend) -> BaseException:
    """Run the program against a runtime that holds its call; what it raised."""
    runtime.is_holding = True
    with pytest.raises(ProgramError) as caught:
        program.run(backend=backend)
    return caught.value.cause


def after_the_call(runtime: ScriptedRuntime, act: object) -> threading.Thread:
    assert callable(act)
    thread = threading.Thread(target=lambda: (runtime.wait_for(lambda: bool(runtime.held)), act()))
    thread.start()
    return thread


def test_a_runtime_that_does_not_answer_is_unavailable() -> None:
    runtime = ScriptedRuntime(answers_hello=False)
    with pytest.raises(RuntimeUnavailable, match="is it running"):
        Client(runtime.transport, timeout_s=0.02)


def test_a_refused_session_says_why() -> None:
    runtime = ScriptedRuntime(answers_hello=False)
    runtime.put(Failed(None, "overloaded", "too many clients"))
    with pytest.raises(Exception, match="too many clients"):
        Client(runtime.transport, timeout_s=5)


def test_an_engine_that_answers_no_pings_ends_the_calls() -> None:
    runtime = ScriptedRuntime(ping_interval_s=0.01)
    runtime.is_stuck = True
    with rt.Backend(runtime.transport) as backend:
        assert isinstance(failure_while_waiting(runtime, backend), EngineFault)
        runtime.is_stuck = False  # it comes back, and so does the session
        runtime.stop_holding()
        answered = False
        while not answered:
            with contextlib.suppress(ProgramError):
                answered = program.run(backend=backend)["x"] == "<1>"


def test_an_engine_that_answers_pings_may_take_its_time() -> None:
    runtime = ScriptedRuntime(ping_interval_s=0.01)
    runtime.is_holding = True
    pongs: list[object] = []
    put = runtime.put
    runtime.put = lambda *messages: (pongs.extend(messages), put(*messages))[1]  # type: ignore[method-assign]
    with rt.Backend(runtime.transport) as backend:
        thread = after_the_call(
            runtime, lambda: (runtime.wait_for(lambda: len(pongs) > 10), runtime.stop_holding())
        )
        assert program.run(backend=backend)["x"] == "<1>"
        thread.join()


def test_closing_the_client_ends_every_call(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    thread = after_the_call(runtime, backend.shutdown)
    assert isinstance(failure_while_waiting(runtime, backend), TransportError)
    thread.join()
    assert not backend.is_open
    backend.shutdown()
    with pytest.raises(TransportError):
        backend.flush_cache()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Goodbye("draining"), TransportError),
        (Failed(None, "bad_request", "not a frame of mine"), Exception),
    ],
)
def test_the_end_of_the_session_ends_every_call(
    runtime: ScriptedRuntime, backend: rt.Backend, message: Goodbye, expected: type[Exception]
) -> None:
    thread = after_the_call(runtime, lambda: runtime.put(message))
    assert isinstance(failure_while_waiting(runtime, backend), expected)
    thread.join()


def test_a_restarted_runtime_ends_the_calls_of_the_one_before(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    thread = after_the_call(
        runtime,
        lambda: runtime.put(Welcome("second", runtime.limits, backend.model)),
    )
    assert isinstance(failure_while_waiting(runtime, backend), EngineFault)
    thread.join()


def test_late_and_foreign_answers_are_dropped(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.put(
        Finished(10_000, (), Usage()),
        Chunk(10_000, 0, "x", ()),
        Failed(10_000, "cancelled", "late"),
        Failed(None, "too_long", "late", branch=10_000),
    )
    assert program.run(backend=backend)["x"] == "<1>"


def test_a_reader_that_breaks_ends_every_call(
    runtime: ScriptedRuntime, backend: rt.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks: list[object] = []
    monkeypatch.setattr(threading, "excepthook", hooks.append)
    thread = after_the_call(runtime, lambda: runtime.transport.put([object()]))  # type: ignore[list-item]
    monkeypatch.setattr(Client, "_tend", lambda self: 1 / 0)
    assert isinstance(failure_while_waiting(runtime, backend), TransportError)
    thread.join()


def test_a_backend_that_nobody_holds_is_closed(runtime: ScriptedRuntime) -> None:
    backend = rt.Backend(runtime.transport)
    client = backend.client
    assert client.is_open
    del backend
    client._reader.join(timeout=10)
    assert not client.is_open


def test_a_state_keeps_its_backend(runtime: ScriptedRuntime) -> None:
    state = program.run(backend=rt.Backend(runtime.transport))
    state += rt.gen("y")
    assert state["y"] == "<4>"


def test_a_runtime_in_this_process_is_started_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = ScriptedRuntime()
    started: list[dict[str, object]] = []
    ended: list[str] = []

    class Handle:
        def transport(self) -> LocalTransport:
            return runtime.transport

        def shutdown(self) -> None:
            ended.append("runtime")

    def start_local(**options: object) -> Handle:
        started.append(options)
        return Handle()

    local = types.ModuleType("radixrt.local")
    local.start_local = start_local  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "radixrt.local", local)
    with rt.Runtime(model_path="some/dir", memory="1GiB") as backend:
        assert backend.get_model_name() == "scripted"
        assert program.run(backend=backend)["x"] == "<1>"
    assert started == [{"model": "some/dir", "memory": "1GiB"}]
    assert ended == ["runtime"]
    backend.shutdown()
    assert ended == ["runtime"]
    with pytest.raises(InvalidArgument, match="model_path"):
        rt.Runtime("a", model_path="b")
    with pytest.raises(TransportError):  # a session that cannot be opened leaves no runtime
        rt.Runtime()
    assert ended == ["runtime", "runtime"]
