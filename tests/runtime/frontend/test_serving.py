"""The server around the engine: before it is ready, when it dies, and its HTTP process."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runtime_process import ask, receive_until, serving

import radixrt as rt
from radixrt.errors import RuntimeUnavailable
from radixrt.protocol import (
    Append,
    Failed,
    Finished,
    Generate,
    Goodbye,
    Hello,
    Open,
    Part,
    Reply,
    Sampling,
    State,
    Stats,
    Welcome,
)
from radixrt.runtime.serving import lobby
from radixrt.runtime.serving.lobby import Lobby
from radixrt.transport import ZmqTransport

PROGRAM = [Open(1), Append(1, (Part("text", "fox"),)), Generate(1, 1, Sampling(max_tokens=3))]


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def states(log: Path) -> list[str]:
    """Return what the HTTP process was told, from "ready" on: whether it came before the engine was
    ready and heard of the start as well is chance."""
    told = [line for line in lines(log) if not line.startswith("pid")]
    return told[told[:1] == ["starting"] :]


def gateway_pids(log: Path) -> list[int]:
    return [int(line.split()[1]) for line in lines(log) if line.startswith("pid")]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_clients_that_come_early_are_answered_when_the_engine_is_ready(
    model_directory: Path, tmp_path: Path
) -> None:
    gate, endpoint = tmp_path / "gate", f"ipc://{tmp_path}/s"
    with serving(
        model_directory, tmp_path, endpoint=endpoint, engine=["--after", str(gate)]
    ) as runtime:
        watcher = ZmqTransport(endpoint, timeout_s=30)
        patient = ZmqTransport(endpoint, timeout_s=30)
        patient.send([Hello(), *PROGRAM])
        watcher.send([Hello(watch=True)])
        told = receive_until(
            watcher, lambda got: State("starting", "weights are on their way") in got
        )
        assert all(isinstance(message, State) for message in told), "answered before it can serve"
        assert not (tmp_path / "ready").exists()
        gate.touch()
        got = receive_until(watcher, lambda got: any(isinstance(m, Welcome) for m in got))
        assert got[-2] == State("ready")
        welcome, finished = receive_until(patient, lambda got: len(got) == 2)
        assert isinstance(welcome, Welcome)
        assert isinstance(finished, Finished)
        runtime.await_ready()
        watcher.close()
        patient.close()


def test_a_program_that_comes_too_early_waits_and_is_told_why(
    model_directory: Path, tmp_path: Path
) -> None:
    gate, endpoint = tmp_path / "gate", f"ipc://{tmp_path}/s"
    engine = ["--after", str(gate)]
    with serving(model_directory, tmp_path, endpoint=endpoint, engine=engine):
        until(lambda: (tmp_path / "s").exists())
        with pytest.raises(RuntimeUnavailable, match="starting: weights are on their way"):
            rt.connect(endpoint, timeout_s=2.0)
        threading.Timer(0.2, gate.touch).start()
        with rt.connect(endpoint, timeout_s=30.0) as backend:
            assert backend.model.vocab_size > 0


def test_a_server_that_is_stopped_while_it_starts_says_goodbye(
    model_directory: Path, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    engine = ["--after", str(tmp_path / "never")]
    with serving(model_directory, tmp_path, endpoint=endpoint, engine=engine) as runtime:
        client = ZmqTransport(endpoint, timeout_s=30)
        client.send([Hello(watch=True)])
        receive_until(client, bool)
        runtime.terminate()
        receive_until(client, lambda got: any(isinstance(m, Goodbye) for m in got))
        assert runtime.wait() == 0
        client.close()


def test_the_http_process_hears_of_every_change(model_directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(model_directory, tmp_path, gateway=[str(log)]) as runtime:
        runtime.await_ready()
        assert runtime.url == "http://127.0.0.1:45678"
        until(lambda: states(log) == ["ready"])
        client = runtime.connect()
        (reply,) = ask(client, [Stats(1)], 1)
        assert isinstance(reply, Reply)
        os.kill(int(reply.data["pid"]), signal.SIGKILL)
        until(lambda: states(log)[1:] == ["restarting", "ready"])
        (finished,) = ask(client, PROGRAM, 1)
        assert isinstance(finished, Finished)
        client.close()
        runtime.terminate()
        assert runtime.wait() == 0
        until(lambda: states(log)[3:] == ["draining", "goodbye"])
        assert not any(map(is_running, gateway_pids(log)))


def test_an_http_process_that_dies_is_started_again_at_its_port(
    model_directory: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with serving(model_directory, tmp_path, gateway=[str(log)], stderr=subprocess.PIPE) as runtime:
        runtime.await_ready()
        until(lambda: states(log) == ["ready"])
        for deaths in (1, 2):
            os.kill(gateway_pids(log)[-1], signal.SIGKILL)
            until(lambda: len(gateway_pids(log)) == deaths + 1)  # noqa: B023
            until(lambda: len(states(log)) == 1 + deaths)  # noqa: B023
        assert states(log) == ["ready"] * 3
        client = runtime.connect()
        (reply,) = ask(client, [Stats(1)], 1)
        assert isinstance(reply, Reply)
        assert reply.data["clients"] == 2, "sessions of the dead are kept"
        client.close()
        runtime.terminate()
        assert runtime.wait() == 0
        assert runtime.process.stderr is not None
        with runtime.process.stderr as stderr:
            said = stderr.read().decode()
    assert said.count("listens at http://127.0.0.1:45678") == 3


def test_nothing_outlives_a_server_that_is_killed(model_directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(model_directory, tmp_path, gateway=[str(log)]) as runtime:
        runtime.await_ready()
        client = runtime.connect()
        (reply,) = ask(client, [Stats(1)], 1)
        assert isinstance(reply, Reply)
        pids = [int(reply.data["pid"]), *gateway_pids(log)]
        assert all(map(is_running, pids))
        runtime.process.kill()
        client.close()
        until(lambda: not any(map(is_running, pids)))


def test_an_http_process_that_cannot_start_ends_the_server(
    model_directory: Path, tmp_path: Path
) -> None:
    with serving(model_directory, tmp_path, gateway=["--fail"], stderr=subprocess.PIPE) as runtime:
        assert runtime.wait() == 1
        assert runtime.process.stderr is not None
        with runtime.process.stderr as stderr:
            said = stderr.read().decode()
    assert "no such address" in said
    assert "--no-http" in said


def test_a_second_signal_ends_at_once(model_directory: Path, tmp_path: Path) -> None:
    engine = ["--step-s", "0.2"]
    with serving(model_directory, tmp_path, drain_s=600.0, engine=engine) as runtime:
        runtime.await_ready()
        client = runtime.connect()
        client.send([Hello(watch=True)])
        ask(client, [*PROGRAM[:2], Generate(1, 1, Sampling(max_tokens=400), stream=True)], 1)
        runtime.terminate()
        receive_until(client, lambda got: any(_is_draining(message) for message in got))
        # New calls are refused, to be tried elsewhere.
        client.send([Open(2), Append(2, (Part("text", "dog"),)), Generate(2, 2)])
        got = receive_until(client, lambda got: any(isinstance(m, Failed) for m in got))
        refused = next(m for m in got if isinstance(m, Failed))
        assert (refused.call, refused.code, refused.retryable) == (2, "overloaded", True)
        runtime.terminate()
        assert runtime.wait() == 0
        client.close()


def _is_draining(message: object) -> bool:
    return isinstance(message, State) and message.phase == "draining"


# ---------------------------------------------------------------- the lobby alone


@pytest.fixture
def sent() -> dict[bytes, list[object]]:
    return {}


@pytest.fixture
def waiting(sent: dict[bytes, list[object]]) -> Lobby:
    return Lobby(lambda client, messages: sent.setdefault(client, []).extend(messages), 2)


def test_a_full_lobby_refuses_further_clients_with_a_reason(
    waiting: Lobby, sent: dict[bytes, list[object]]
) -> None:
    for client in (b"a", b"b", b"c"):
        waiting.on_client(client, [Hello()])
    assert sent.keys() == {b"c"}
    (failed,) = sent[b"c"]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable) == ("overloaded", True)
    waiting.on_client(b"a", [Goodbye()])
    waiting.on_client(b"c", [Hello()])
    assert waiting.client_ids == {b"b", b"c"}


def test_a_client_that_sends_without_end_is_sent_away(
    waiting: Lobby, sent: dict[bytes, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lobby, "MAX_HELD", 3)
    waiting.on_client(b"a", [Hello(watch=True), Open(1), Open(2), Open(3)])
    assert isinstance(sent[b"a"][-1], Goodbye)
    assert not waiting.client_ids
    waiting.tell("starting", "weights")
    assert sent[b"a"][-1] != State("starting", "weights"), "told after it was sent away"


def test_what_waited_is_handed_over_in_order(waiting: Lobby) -> None:
    waiting.on_client(b"b", [Hello()])
    waiting.on_client(b"a", [Hello(), Open(1)])
    waiting.on_client(b"b", [Open(2)])
    assert list(waiting.release()) == [(b"b", [Hello(), Open(2)]), (b"a", [Hello(), Open(1)])]
    assert not list(waiting.release())
