"""The gateway and its runtime: hang-ups, slow readers, restarts and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gateway_process import Gateway, await_stats, error_of, gateway
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_process import RuntimeProcess, serving
from tiny_tokenizer import write_model_directory

from radixrt.gateway.exchange import WINDOW, Exchange
from radixrt.protocol import Cancel, Chunk, Credit

COMPLETIONS = "/v1/completions"
STEP_S = "0.02"
"""Time of a token of the slow engine: no generation of its 512 tokens ends within a test."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_directory(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def slow(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    engine = ["--step-s", STEP_S]
    with serving(model, tmp_path_factory.mktemp("slow"), engine=engine) as runtime:
        runtime.await_ready()
        yield runtime


@pytest.fixture(scope="module")
def api(slow: RuntimeProcess) -> Iterator[Gateway]:
    with gateway(slow.endpoint) as served:
        served.await_phase("ready")
        yield served


def request_bytes(**fields: object) -> bytes:
    body = json.dumps({"prompt": "x", "max_tokens": 400, "ignore_eos": True, **fields}).encode()
    head = (
        f"POST {COMPLETIONS} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def connect(api: Gateway) -> socket.socket:
    address = urlsplit(api.url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 3}, {"prompt": ["x", "y"]}])
def test_a_client_that_hangs_up_stops_its_generation(
    api: Gateway, slow: RuntimeProcess, fields: dict[str, object]
) -> None:
    with connect(api) as connection:
        connection.sendall(request_bytes(**fields))
        await_stats(slow.endpoint, lambda stats: stats["running"] > 0)
    stats = await_stats(slow.endpoint, lambda stats: stats["running"] == 0)
    assert stats["client_calls"] <= 1  # the question itself
    await_stats(slow.endpoint, lambda stats: stats["branches"] == 0)


def test_a_request_that_takes_too_long_is_ended(slow: RuntimeProcess) -> None:
    with gateway(slow.endpoint, request_timeout_s=0.3) as served:
        served.await_phase("ready")
        answer = served.post(COMPLETIONS, prompt="x", max_tokens=400, ignore_eos=True)
    assert answer.status_code == 504
    assert error_of(answer)["type"] == "timeout_error"


def test_on_sigterm_what_runs_is_finished(slow: RuntimeProcess) -> None:
    with gateway(slow.endpoint) as served:
        served.await_phase("ready")
        with connect(served) as connection:
            connection.sendall(request_bytes(stream=True, max_tokens=20))
            received = connection.recv(100)
            served.process.send_signal(signal.SIGTERM)
            while not received.endswith(b"0\r\n\r\n"):
                more = connection.recv(65536)
                assert more, received
                received += more
        assert b"[DONE]" in received
        assert served.process.wait(10) == 0


def test_the_gateway_ends_with_its_parent(slow: RuntimeProcess) -> None:
    with gateway(slow.endpoint) as served:
        assert served.process.stdin is not None
        served.process.stdin.close()
        assert served.process.wait(10) == 0


def test_before_the_runtime_is_there_requests_are_told_to_wait(model: Path, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/rt"
    with gateway(endpoint) as served:
        assert served.http.get("/health").status_code == 200
        ready = served.http.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "connecting")
        assert "radixrt_ready 0.0" in served.http.get("/metrics").text
        answer = served.post(COMPLETIONS, prompt="x")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        error_of(answer)
        with serving(model, tmp_path, endpoint=endpoint, engine=["--step-s", STEP_S]) as runtime:
            runtime.await_ready()
            served.await_phase("ready")
            page = served.http.get("/metrics").text
            assert "radixrt_ready 1.0" in page
            assert 'radixrt_http_responses_total{key="anyone",status="503"} 1.0' in page
            assert served.ok(COMPLETIONS, prompt="x", max_tokens=2)["usage"]["total_tokens"] > 2
            engine_death(served, runtime)
            runtime_death(served, runtime)
        served.await_phase("restarting", "connecting")
        with serving(model, tmp_path, endpoint=endpoint) as runtime:
            served.await_phase("ready")
            assert served.ok(COMPLETIONS, prompt="x", max_tokens=2)["usage"]["total_tokens"] > 2


def engine_death(served: Gateway, runtime: RuntimeProcess) -> None:
    """What runs fails; readiness says so; what comes later is served again."""
    with connect(served) as connection:
        connection.sendall(request_bytes())
        stats = await_stats(runtime.endpoint, lambda stats: stats["running"] > 0)
        os.kill(stats["pid"], signal.SIGKILL)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503"), answer
        assert b"retry-after" in answer
    served.await_phase("ready")
    assert served.ok(COMPLETIONS, prompt="x", max_tokens=2)["usage"]["total_tokens"] > 2


def runtime_death(served: Gateway, runtime: RuntimeProcess) -> None:
    """A stream under way ends with an error event."""
    with served.http.stream(
        "POST", COMPLETIONS, json={"prompt": "x", "max_tokens": 400, "stream": True}
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        os.kill(runtime.process.pid, signal.SIGKILL)
        *_, failed, done = [line for line in lines if line]
    assert json.loads(failed.removeprefix("data: "))["error"]["type"] == "service_unavailable_error"
    assert done == "data: [DONE]"


def test_a_reader_who_is_slow_gets_it_all(api: Gateway) -> None:
    """It does not hold others up meanwhile, and what waits for it is bounded."""
    with connect(api) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall(request_bytes(stream=True, max_tokens=120))
        for _ in range(3):
            assert api.ok(COMPLETIONS, prompt="y", max_tokens=2)["usage"]["completion_tokens"] == 2
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            more = connection.recv(512)
            assert more, received
            received += more
    assert b'"finish_reason":"length"' in received
    assert b"[DONE]" in received


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 200), max_size=20))
def test_what_waits_unread_is_bounded_by_the_credit(bursts: list[int]) -> None:
    """However chunks come, the runtime may never send more than ``WINDOW`` that were not read."""
    credit, sent = WINDOW, 0
    told: list[object] = []
    exchange = Exchange([7], told.append)

    async def go() -> None:
        nonlocal credit, sent
        num_read = 0
        for burst in bursts:
            for _ in range(min(burst, credit)):
                credit -= 1
                sent += 1
                exchange.put(0, Chunk(7, 0, "x", (1,)))
                assert sent - num_read <= WINDOW
            if sent > num_read:
                num_read += len(await exchange.take())
            for message in told:
                assert isinstance(message, Credit)
                credit += message.chunks
            told.clear()
            assert credit >= WINDOW // 2  # a reader who keeps up is never held up

    run(go())


def test_an_exchange_that_is_abandoned_cancels_what_runs() -> None:
    told: list[object] = []
    exchange = Exchange([4, 5], told.append)
    exchange.abandon()
    assert set(map(str, told)) == {str(Cancel(4)), str(Cancel(5))}


def run(coroutine) -> None:  # type: ignore[no-untyped-def]
    import asyncio

    asyncio.run(coroutine)
