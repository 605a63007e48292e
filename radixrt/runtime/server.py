"""The runtime process: clients on one socket, the engine's process on another, one loop."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import zmq

from radixrt.config import RuntimeConfig
from radixrt.errors import EngineFault, ProtocolError
from radixrt.protocol import Goodbye, Message, ToClient, decode, encode
from radixrt.runtime.channel import has_message
from radixrt.runtime.chat import ChatFormat, load_chat_format
from radixrt.runtime.endpoints import (
    ClientSocket,
    ServerCurve,
    check_endpoint,
    private_directory,
)
from radixrt.runtime.frontend import Frontend
from radixrt.runtime.reporter import Reporter
from radixrt.runtime.sessions import PING_INTERVAL_S
from radixrt.runtime.supervisor import KILL_AFTER_S, MAX_EARLY_DEATHS, EngineProcess
from radixrt.runtime.tokenizer import Tokenizer
from radixrt.runtime.wire import EngineFailed, FromEngine, Progress, Ready

TICK_S = 0.1
"""How often the loop looks at deadlines, the engine's process and signals at least."""

FAREWELL_S = 1.0
"""How long a runtime that ends waits for its clients to have read everything."""

_MAX_MESSAGES_A_ROUND = 32
"""Messages of clients handled before the engine's are looked at again."""


class Server:
    """Serves the model of ``config`` until it is told to stop. ``run`` is the whole life of it."""

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        curve: ServerCurve | None = None,
        ready_file: Path | None = None,
        engine_command: tuple[str, ...] | None = None,
        ping_interval_s: float = PING_INTERVAL_S,
    ) -> None:
        """``ready_file`` gets the endpoint when clients can connect. ``engine_command`` runs
        another engine than the real one. ``ping_interval_s``: how often clients show that they
        live. Raises ``ConfigError``."""
        if config.endpoint:
            check_endpoint(config.endpoint, curve)
        self._config = config
        self._curve = curve
        self._ready_file = ready_file
        self._engine_command = engine_command
        self._ping_interval_s = ping_interval_s
        self._report = Reporter(config.log_format)
        self._unreachable: list[bytes] = []
        self._early_deaths = 0
        self._is_engine_ready = False
        self._num_stop_signals = 0
        self._poller = zmq.Poller()
        self._engine_socket: zmq.Socket[bytes] | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def stop(self) -> None:
        """Drain and end; a second time: end now. Safe in signal handlers and from other threads."""
        self._num_stop_signals += 1
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    def run(self) -> None:
        """Serve. Raises ``ModelError``, ``ConfigError`` and ``EngineFault`` when it cannot."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        with _signals(self), private_directory() as directory:
            command = {} if self._engine_command is None else {"command": self._engine_command}
            self._engine = EngineProcess(self._config, directory, context, **command)
            try:
                self._run(context, directory)
            finally:
                if self._ready_file is not None:
                    self._ready_file.unlink(missing_ok=True)
                self._engine.stop(KILL_AFTER_S if self._is_engine_ready else 0.0)
                context.destroy(linger=500)
                self._report.event("stopped")

    def _run(self, context: zmq.Context[zmq.Socket[bytes]], directory: Path) -> None:
        self._report.event("starting", str(self._config.model_path))
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._start_engine()
        path = self._config.model_path
        tokenizer = Tokenizer(path)
        chat = load_chat_format(path, tokenizer)
        ready = self._await_ready()
        if ready is None:
            return
        endpoint = self._config.endpoint or f"ipc://{directory}/clients"
        clients = ClientSocket(endpoint, context, self._curve)
        self._router = clients.router
        self._poller.register(self._router, zmq.POLLIN)
        self._frontend = Frontend(
            self._config,
            ready,
            tokenizer,
            chat,
            send_client=self._send_client,
            send_engine=self._engine.send,
            ping_interval_s=self._ping_interval_s,
        )
        try:
            self._announce(ready, chat, clients.endpoint)
            self._serve()
        finally:
            client_ids = self._frontend.client_ids
            self._frontend.close("the runtime is shutting down")
            self._await_farewells(client_ids)
            clients.close()

    def _await_farewells(self, client_ids: set[bytes]) -> None:
        """Keep the clients' socket open until each of them has answered the goodbye.

        A client that writes to a closed connection loses what it has not read yet, its last
        replies among it. Bounded by ``FAREWELL_S``; a second stop signal skips it.
        """
        until = time.monotonic() + FAREWELL_S
        while client_ids and self._num_stop_signals < 2:
            left_s = until - time.monotonic()
            if left_s <= 0 or not self._router.poll(int(left_s * 1000) + 1):
                return
            client_id, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            if any(isinstance(_decoded(frame), Goodbye) for frame in frames):
                client_ids.discard(client_id)

    def _serve(self) -> None:
        drain_until: float | None = None
        next_tick = 0.0
        while True:
            self._poll()
            if time.monotonic() >= next_tick:
                self._frontend.on_tick()
                self._watch_engine()
                next_tick = time.monotonic() + TICK_S
            if self._num_stop_signals == 1 and drain_until is None:
                drain_until = time.monotonic() + self._config.drain_s
                self._frontend.drain()
                self._report.event("draining", calls=self._frontend.num_calls)
            if self._num_stop_signals > 1:
                return
            if drain_until is not None and (
                self._frontend.num_calls == 0 or time.monotonic() >= drain_until
            ):
                return

    def _poll(self) -> None:
        due = self._frontend.next_deadline
        wait_s = TICK_S if due is None else min(TICK_S, max(0.0, due - time.monotonic()))
        ready = dict(self._poller.poll(int(wait_s * 1000) + 1))
        self._clear_wakeups(ready)
        if self._engine.socket in ready:
            self._on_engine(self._engine.receive())
        if self._router in ready:
            self._receive_clients()
        while self._unreachable:
            self._frontend.drop_client(self._unreachable.pop())

    def _start_engine(self) -> None:
        if self._engine_socket is not None:
            self._poller.unregister(self._engine_socket)
        self._engine.start()
        self._engine_socket = self._engine.socket
        self._poller.register(self._engine_socket, zmq.POLLIN)

    def _clear_wakeups(self, ready: dict[object, int]) -> None:
        if self._wake_read in ready:
            os.read(self._wake_read, 64)

    # ------------------------------------------------------------ clients

    def _receive_clients(self) -> None:
        for _ in range(_MAX_MESSAGES_A_ROUND):
            if not has_message(self._router):
                return
            client_id, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            self._frontend.on_client(client_id, [_decoded(frame) for frame in frames])

    def _send_client(self, client_id: bytes, messages: list[ToClient]) -> None:
        try:
            self._router.send_multipart([client_id, *map(encode, messages)], zmq.NOBLOCK)
        except zmq.Again:  # it does not read
            self._unreachable.append(client_id)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._unreachable.append(client_id)

    # ------------------------------------------------------------ the engine

    def _await_ready(self) -> Ready | None:
        """Wait for the first engine; None when the server was told to stop meanwhile."""
        while not self._num_stop_signals:
            ready = dict(self._poller.poll(int(TICK_S * 1000)))
            self._clear_wakeups(ready)
            code = self._engine.exit_code()
            for message in self._engine.receive():
                if isinstance(message, Progress):
                    self._report.progress(message)
                elif isinstance(message, EngineFailed):
                    raise EngineFault(f"the engine could not start: {message.message}")
                elif isinstance(message, Ready):
                    self._is_engine_ready = True
                    return message
            if code is not None:
                raise EngineFault(f"the engine process ended while it started (exit code {code})")
        return None

    def _on_engine(self, messages: list[FromEngine]) -> None:
        for message in messages:
            match message:
                case Progress():
                    self._report.progress(message)
                case EngineFailed(id=None):
                    self._report.event("engine failed", message.message)
                case Ready():
                    self._is_engine_ready = True
                    self._early_deaths = 0
                    self._report.event("engine is back", pid=self._engine.pid)
                case _:
                    pass
        self._frontend.on_engine(messages)

    def _watch_engine(self) -> None:
        code = self._engine.exit_code()
        if code is None:
            return
        self._on_engine(self._engine.receive())
        reason = f"the engine process died (exit code {code})"
        self._report.event("engine died", f"exit code {code}")
        self._early_deaths = 0 if self._is_engine_ready else self._early_deaths + 1
        self._is_engine_ready = False
        self._frontend.on_engine_down(reason)
        if self._early_deaths >= MAX_EARLY_DEATHS:
            raise EngineFault(f"{reason} {self._early_deaths} times while it started")
        self._start_engine()

    # ------------------------------------------------------------ what the user sees

    def _announce(self, ready: Ready, chat: ChatFormat, endpoint: str) -> None:
        if not chat.is_template:
            self._report.event(
                "warning", "the model has no chat template; roles are written as 'User: …' lines"
            )
        info = ready.info
        self._report.event(
            "ready",
            str(info.get("model", self._config.model_path.name)),
            device=info.get("device", ""),
            dtype=info.get("dtype", ""),
            attention=_chosen(info, "attention"),
            ops=_chosen(info, "ops"),
            kv_tokens=info.get("kv_tokens", ""),
            max_running=info.get("max_running", ""),
            endpoint=endpoint,
        )
        if self._ready_file is not None:
            partial = self._ready_file.with_name(self._ready_file.name + ".partial")
            partial.write_text(endpoint + "\n", encoding="utf-8")
            partial.replace(self._ready_file)


def _chosen(info: dict[str, Any], part: str) -> str:
    """Return which provider of a part the engine chose and why: "triton (…)"."""
    name, why = str(info.get(part, "")), str(info.get(f"{part}_why", ""))
    return f"{name} ({why})" if why else name


def _decoded(frame: bytes) -> Message | ProtocolError:
    try:
        return decode(frame)
    except ProtocolError as error:
        return error


@contextlib.contextmanager
def _signals(server: Server) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the server while it runs."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        server.stop()

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
