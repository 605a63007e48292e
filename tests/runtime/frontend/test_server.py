"""A runtime process over sockets, with the fake engine."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
import zmq.auth
from runtime_process import RuntimeProcess, ask, hello, receive_until, serving

from radixrt.config import RuntimeConfig
from radixrt.curve import ClientCurve
from radixrt.errors import ConfigError, KeysRefused, TransportError
from radixrt.protocol import (
    Append,
    Failed,
    Finished,
    Generate,
    Goodbye,
    Hello,
    Open,
    Part,
    Ping,
    Pong,
    Reply,
    Sampling,
    Stats,
    decode,
    encode,
)
from radixrt.runtime.endpoints import ServerCurve, check_endpoint, read_allowed
from radixrt.runtime.serving.server import Server
from radixrt.transport import Transport, ZmqTransport


@pytest.fixture(scope="module")
def runtime(
    model_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RuntimeProcess]:
    directory = tmp_path_factory.mktemp("runtime")
    with serving(model_directory, directory) as process:
        process.await_ready()
        yield process


@pytest.fixture
def transport(runtime: RuntimeProcess) -> Iterator[ZmqTransport]:
    transport = runtime.connect()
    yield transport
    transport.close()


def prompt(branch: int, words: str) -> list[Open | Append]:
    return [Open(branch), Append(branch, (Part("text", words),))]


def stats(transport: Transport, call: int) -> dict[str, object]:
    (reply,) = ask(transport, [Stats(call)], 1)
    assert isinstance(reply, Reply)
    return reply.data


def test_a_program_step_is_one_message_and_is_answered(transport: ZmqTransport) -> None:
    (finished,) = ask(transport, [*prompt(1, "fox"), Generate(1, 1, Sampling(max_tokens=4))], 1)
    assert isinstance(finished, Finished)
    assert len(finished.outputs[0].token_ids) == 4


def test_a_ping_goes_to_the_engine_and_back(transport: ZmqTransport) -> None:
    assert ask(transport, [Ping(5)], 1) == [Pong(5, 0.25)]


def test_the_default_endpoint_is_private_to_its_owner(runtime: RuntimeProcess) -> None:
    path = Path(runtime.endpoint.removeprefix("ipc://"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_bad_frames_are_answered_and_harm_nobody(
    runtime: RuntimeProcess, transport: ZmqTransport
) -> None:
    context = zmq.Context()
    try:
        with context.socket(zmq.DEALER) as raw:
            raw.linger = 0
            raw.connect(runtime.endpoint)
            for frames in ([b"\xff"], [b""], [b"[1,2,3]"], [b'["nope",{}]', encode(Hello())]):
                raw.send_multipart(frames)
                assert raw.poll(10_000)
                first = decode(raw.recv_multipart()[0])
                assert isinstance(first, Failed)
                assert (first.call, first.code) == (None, "bad_request")
    finally:
        context.destroy(linger=0)
    assert isinstance(ask(transport, [Ping(1)], 1)[0], Pong)


def test_a_client_that_is_killed_leaves_nothing(
    runtime: RuntimeProcess, transport: ZmqTransport
) -> None:
    context = zmq.Context()
    raw = context.socket(zmq.DEALER)
    raw.linger = 0
    raw.connect(runtime.endpoint)
    call = Generate(1, 1, Sampling(max_tokens=400), stream=True)
    raw.send_multipart([encode(m) for m in (Hello(), *prompt(1, "x"), call)])
    assert raw.poll(10_000)
    context.destroy(linger=0)  # no goodbye
    deadline = time.monotonic() + 20
    call_id = 100
    while time.monotonic() < deadline:
        call_id += 1
        found = stats(transport, call_id)
        if (found["clients"], found["branches"], found["leases"]) == (1, 0, 0):
            return
    raise AssertionError(found)


def test_a_runtime_drains_when_it_is_told_to_end(model_directory: Path, tmp_path: Path) -> None:
    with serving(model_directory, tmp_path, engine=["--step-s", "0.005"]) as runtime:
        runtime.await_ready()
        transport = runtime.connect()
        running = Generate(1, 1, Sampling(max_tokens=100), stream=True)
        ask(transport, [*prompt(1, "fox"), running], 1)
        runtime.terminate()
        late: list[Open | Append | Generate] = [*prompt(2, "dog"), Generate(2, 2)]
        got = receive_until(
            transport, lambda got: any(isinstance(m, Finished | Goodbye) for m in got)
        )
        assert any(isinstance(m, Finished) for m in got)
        try:
            transport.send(late)
            if not any(isinstance(m, Goodbye) for m in got):
                said = receive_until(transport, lambda g: any(isinstance(m, Goodbye) for m in g))
                got += said
        except TransportError:
            pass
        assert not any(isinstance(m, Finished) and m.call == 2 for m in got)
        assert runtime.wait() == 0
        transport.close()
    assert not (tmp_path / "ready").exists()


def test_draining_ends_in_time_and_fails_what_still_runs(
    model_directory: Path, tmp_path: Path
) -> None:
    engine = ["--step-s", "0.1"]
    with serving(model_directory, tmp_path, drain_s=0.2, engine=engine) as runtime:
        runtime.await_ready()
        transport = runtime.connect()
        ask(transport, [*prompt(1, "x"), Generate(1, 1, Sampling(max_tokens=400), stream=True)], 1)
        runtime.terminate()
        got = receive_until(transport, lambda got: any(isinstance(m, Goodbye) for m in got))
        assert [m.code for m in got if isinstance(m, Failed)] == ["engine_fault"]
        assert runtime.wait() == 0
        transport.close()


def test_a_killed_engine_fails_its_calls_and_comes_back(
    model_directory: Path, tmp_path: Path
) -> None:
    with serving(model_directory, tmp_path, engine=["--step-s", "0.01"]) as runtime:
        runtime.await_ready()
        transport = runtime.connect()
        (first,) = ask(transport, [*prompt(1, "fox"), Generate(1, 1, Sampling(max_tokens=3))], 1)
        assert isinstance(first, Finished)
        engine = int(str(stats(transport, 2)["pid"]))
        running = Generate(3, 2, Sampling(max_tokens=400))
        transport.send([*prompt(2, "dog"), running])
        os.kill(engine, signal.SIGKILL)
        (failed,) = receive_until(transport, lambda got: len(got) >= 1)
        assert isinstance(failed, Failed)
        assert (failed.code, failed.retryable) == ("engine_fault", True)
        # The branch lives in the frontend: the new engine computes it again.
        (again,) = ask(transport, [Generate(4, 1, Sampling(max_tokens=3))], 1)
        assert isinstance(again, Finished)
        assert again.usage.prompt_tokens == first.usage.prompt_tokens + 3
        assert stats(transport, 5)["pid"] != engine
        transport.close()


def test_an_engine_that_cannot_start_says_why(model_directory: Path, tmp_path: Path) -> None:
    engine = ["--fail", "no such weights"]
    with serving(model_directory, tmp_path, engine=engine, stderr=subprocess.PIPE) as runtime:
        assert runtime.wait() != 0
        assert runtime.process.stderr is not None
        with runtime.process.stderr as stderr:
            assert b"no such weights" in stderr.read()


def test_the_engine_ends_with_a_killed_frontend(model_directory: Path, tmp_path: Path) -> None:
    with serving(model_directory, tmp_path) as runtime:
        runtime.await_ready()
        transport = runtime.connect()
        engine = int(str(stats(transport, 1)["pid"]))
        runtime.process.kill()
        transport.close()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                state = Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                return
            if state == "Z":
                return
            time.sleep(0.02)
        raise AssertionError("the engine lives on")


def test_tcp_is_for_clients_with_an_allowed_key(model_directory: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("server", "friend", "stranger"):
        zmq.auth.create_certificates(keys, name)
    pairs = {
        name: zmq.auth.load_certificate(keys / f"{name}.key_secret")
        for name in ("server", "friend", "stranger")
    }
    allow = tmp_path / "allowed"
    allow.write_text(f"# clients\n{pairs['friend'][0].decode()}  # the friend\n")

    def curve(name: str) -> ClientCurve:
        public, secret = pairs[name]
        assert secret is not None
        return ClientCurve(pairs["server"][0].decode(), public.decode(), secret.decode())

    with serving(
        model_directory,
        tmp_path,
        endpoint="tcp://127.0.0.1:*",
        curve=(keys / "server.key_secret", allow),
    ) as runtime:
        runtime.await_ready()
        friend = ZmqTransport(runtime.endpoint, curve=curve("friend"))
        assert hello(friend).model.vocab_size > 0
        friend.close()
        for keys_of_caller, said in (
            (curve("stranger"), "does not know the client key"),
            (None, "give server_key and client_key"),
            (replace(curve("friend"), server_public=curve("stranger").public), "server_key is not"),
        ):
            other = ZmqTransport(runtime.endpoint, timeout_s=60.0, curve=keys_of_caller)
            with pytest.raises(KeysRefused, match=said):
                receive_until(other, bool)
            other.close()


@pytest.mark.parametrize(
    "endpoint", ["tcp://0.0.0.0:5555", "tcp://*:5555", "inproc://x", "ipc://", "ipc://" + "x" * 200]
)
def test_an_endpoint_that_must_not_be_bound_is_refused(
    model_directory: Path, endpoint: str
) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        Server(RuntimeConfig(model=model_directory, endpoint=endpoint))


def test_an_open_endpoint_has_to_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        check_endpoint("tcp://0.0.0.0:5555", None)
    check_endpoint("tcp://0.0.0.0:5555", None, is_open=True)
    with pytest.raises(ConfigError, match="curve keys are for tcp"):
        check_endpoint("ipc:///tmp/x", ServerCurve(Path("secret"), Path("allow")))


def test_allowed_keys_are_the_first_words_of_lines(tmp_path: Path) -> None:
    key, other = "#" + "k" * 39, "o" * 40  # a key may hold the sign of a comment
    file = tmp_path / "allowed"
    file.write_text(f"# clients of ours\n\n{key}  # the first\n{other}\n")
    assert read_allowed(file) == {key.encode(), other.encode()}
    file.write_text("too-short\n")
    with pytest.raises(ValueError, match="40 characters"):
        read_allowed(file)


def test_an_endpoint_in_use_is_not_taken_over(
    model_directory: Path, runtime: RuntimeProcess
) -> None:
    with pytest.raises(ConfigError, match="another process"):
        Server(RuntimeConfig(model=model_directory, endpoint=runtime.endpoint))


def test_the_line_that_says_ready_names_what_was_chosen_and_why(
    model_directory: Path, tmp_path: Path
) -> None:
    with serving(model_directory, tmp_path, stderr=subprocess.PIPE) as runtime:
        runtime.await_ready()
        runtime.terminate()
        runtime.wait()
        assert runtime.process.stderr is not None
        with runtime.process.stderr as stderr:
            (line,) = (line for line in stderr.read().decode().splitlines() if "ready: " in line)
    for told in (
        "fake",
        "device none",
        "attention none (nothing is computed)",
        "kv_tokens 1000",
        "max_running 7",
        f"endpoint {runtime.endpoint}",
    ):
        assert told in line
