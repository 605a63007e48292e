"""Both transports: order, waking, ends, and who is told what."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
import zmq.auth

from radixrt.curve import read_curve
from radixrt.errors import InvalidArgument, KeysRefused, RuntimeUnavailable, TransportError
from radixrt.protocol import (
    Append,
    Failed,
    Goodbye,
    Hello,
    Limits,
    ModelInfo,
    Part,
    Ping,
    Pong,
    ToClient,
    ToRuntime,
    Welcome,
    decode,
    encode_all,
)
from radixrt.transport import LocalTransport, ZmqTransport


def welcome(ping_interval_s: float) -> Welcome:
    limits = Limits(1 << 20, 10, 10, 100, ping_interval_s)
    return Welcome("epoch", limits, ModelInfo("m", "A", 10, 100, False))


class ScriptedRouter:
    """The other end of a socket, driven by hand."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(endpoint)
        self.endpoint = self._socket.last_endpoint.decode()
        self.client = b""

    def receive(self, timeout_s: float = 10.0) -> list[ToRuntime]:
        if not self._socket.poll(int(timeout_s * 1000)):
            return []
        self.client, *frames = self._socket.recv_multipart()
        return [decode(frame) for frame in frames]  # type: ignore[misc]

    def send(self, messages: list[ToClient]) -> None:
        self.send_raw(encode_all(messages))

    def send_raw(self, frames: list[bytes]) -> None:
        self._socket.send_multipart([self.client, *frames])

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/s"


@pytest.fixture
def router(endpoint: str) -> Iterator[ScriptedRouter]:
    router = ScriptedRouter(endpoint)
    yield router
    router.close()


def receive(transport: ZmqTransport, timeout_s: float = 10.0) -> list[ToClient]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if got := transport.receive(0.5):
            return got
    raise AssertionError("nothing arrived")


def test_messages_of_one_send_travel_together(endpoint: str, router: ScriptedRouter) -> None:
    transport = ZmqTransport(endpoint)
    transport.send([Hello(), Ping(1), Ping(2)])
    assert router.receive() == [Hello(), Ping(1), Ping(2)]
    router.send([Pong(1, 0.5), Pong(2, 0.5)])
    assert receive(transport) == [Pong(1, 0.5), Pong(2, 0.5)]
    transport.close()
    assert router.receive() == [Goodbye()]


def test_each_threads_messages_keep_their_order(endpoint: str, router: ScriptedRouter) -> None:
    transport = ZmqTransport(endpoint)
    threads = [
        threading.Thread(
            target=lambda base=base: [transport.send([Ping(base + i)]) for i in range(200)]
        )
        for base in (1000, 2000, 3000)
    ]
    for thread in threads:
        thread.start()
    got = [m.seq for _ in range(600) for m in router.receive() if isinstance(m, Ping)]
    for thread in threads:
        thread.join()
    for base in (1000, 2000, 3000):
        assert [seq for seq in got if base <= seq < base + 1000] == list(range(base, base + 200))
    transport.close()


def test_nobody_at_the_endpoint_is_an_error_in_time(endpoint: str) -> None:
    transport = ZmqTransport(endpoint, timeout_s=0.2)
    transport.send([Hello()])
    with pytest.raises(RuntimeUnavailable, match="radixrt serve"):
        receive(transport)
    with pytest.raises(TransportError):
        transport.send([Ping(1)])
    transport.close()


def test_a_listener_that_speaks_something_else_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        transport = ZmqTransport(f"tcp://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.5)
        transport.send([Hello()])
        with pytest.raises(RuntimeUnavailable, match="does not speak ZeroMQ; an HTTP port"):
            receive(transport)
        transport.close()
        listener.shutdown(socket.SHUT_RDWR)


def test_keys_for_an_endpoint_that_takes_none_are_refused(tmp_path: Path) -> None:
    files = zmq.auth.create_certificates(tmp_path, "any")
    router = ScriptedRouter("tcp://127.0.0.1:*")
    curve = read_curve(files[0], files[1], endpoint=router.endpoint)
    transport = ZmqTransport(router.endpoint, timeout_s=60.0, curve=curve)
    with pytest.raises(KeysRefused, match="takes no keys"):
        receive(transport)
    transport.close()
    router.close()


def test_a_hello_without_answer_is_an_error_in_time(endpoint: str, router: ScriptedRouter) -> None:
    transport = ZmqTransport(endpoint, timeout_s=0.2)
    transport.send([Hello()])
    assert router.receive() == [Hello()]
    with pytest.raises(RuntimeUnavailable):
        receive(transport)
    transport.close()


def test_an_open_session_is_pinged_and_its_pongs_are_kept(
    endpoint: str, router: ScriptedRouter
) -> None:
    transport = ZmqTransport(endpoint)
    transport.send([Hello()])
    router.receive()
    # Three missed intervals end the session, so the interval is far above a busy machine's pauses.
    router.send([welcome(0.5)])
    assert receive(transport) == [welcome(0.5)]
    for _ in range(3):
        (ping,) = router.receive()
        assert isinstance(ping, Ping)
        router.send([Pong(ping.seq, 0.0)])
    router.send([Pong(1, 9.0)])
    assert receive(transport) == [Pong(1, 9.0)]
    transport.close()


def test_a_runtime_that_answers_no_ping_is_gone(endpoint: str, router: ScriptedRouter) -> None:
    transport = ZmqTransport(endpoint)
    transport.send([Hello()])
    router.receive()
    router.send([welcome(0.02)])
    receive(transport)
    with pytest.raises(RuntimeUnavailable, match="no ping"):
        receive(transport)
    transport.close()


@pytest.mark.parametrize("frames", [[b"\xff"], encode_all([Hello()])], ids=["garbage", "client's"])
def test_a_peer_that_does_not_speak_the_protocol(
    endpoint: str, router: ScriptedRouter, frames: list[bytes]
) -> None:
    transport = ZmqTransport(endpoint)
    transport.send([Hello()])
    router.receive()
    router.send_raw(frames)
    with pytest.raises(TransportError):
        receive(transport)
    transport.close()


def test_a_message_over_the_limit_is_refused_by_name(endpoint: str) -> None:
    transport = ZmqTransport(endpoint, timeout_s=0.2)
    with pytest.raises(InvalidArgument, match="Append"):
        transport.send([Append(1, (Part("text", "x" * (17 << 20)),))])
    transport.close()


@pytest.mark.parametrize("endpoint", ["", "inproc://x", "localhost:5555"])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(InvalidArgument, match="endpoint"):
        ZmqTransport(endpoint)


def test_close_wakes_the_reader(endpoint: str, router: ScriptedRouter) -> None:
    local, _ = LocalTransport.pair()
    for transport in (ZmqTransport(endpoint), local):
        raised = threading.Event()

        def read(transport=transport, raised=raised) -> None:  # type: ignore[no-untyped-def]
            try:
                transport.receive(60)
            except TransportError:
                raised.set()

        thread = threading.Thread(target=read)
        thread.start()
        transport.close()
        transport.close()
        assert raised.wait(10)
        thread.join()
        with pytest.raises(TransportError, match="closed"):
            transport.send([Ping(1)])


def test_a_local_pair_passes_objects_both_ways() -> None:
    transport, peer = LocalTransport.pair()
    hello = Hello(client="me")
    transport.send([hello, Ping(1)])
    got = peer.receive(1.0)
    assert got[0] is hello
    assert peer.receive(0) == []
    peer.send([Pong(1, 0.0)])
    peer.send([Failed(1, "cancelled", "x")])
    assert transport.receive(1.0) == [Pong(1, 0.0), Failed(1, "cancelled", "x")]
    assert transport.receive(0) == []
    transport.close()
    assert peer.receive(1.0) == [Goodbye()]


def test_a_broken_local_connection_delivers_what_came_before() -> None:
    transport, peer = LocalTransport.pair()
    peer.send([Pong(1, 0.0)])
    peer.fail(TransportError("the engine is gone"))
    assert transport.receive(1.0) == [Pong(1, 0.0)]
    for _ in range(2):
        with pytest.raises(TransportError, match="the engine is gone"):
            transport.receive(1.0)
    with pytest.raises(TransportError, match="the engine is gone"):
        transport.send([Ping(1)])
