"""The runtime process: clients on one socket, the engine's process on another, one loop."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import zmq

from radixrt.config import RuntimeConfig
from radixrt.errors import EngineFault, ProtocolError
from radixrt.protocol import Goodbye, Message, ToClient, decode, encode
from radixrt.runtime.channel import has_message
from radixrt.runtime.endpoints import (
    ClientSocket,
    ServerCurve,
    check_endpoint,
    private_directory,
)
from radixrt.runtime.frontend.chat import load_chat_format
from radixrt.runtime.frontend.frontend import Frontend
from radixrt.runtime.frontend.sessions import PING_INTERVAL_S
from radixrt.runtime.serving.gateway_process import GatewayProcess, HttpService
from radixrt.runtime.serving.lobby import Lobby
from radixrt.runtime.serving.reporter import Reporter
from radixrt.runtime.serving.supervisor import KILL_AFTER_S, MAX_EARLY_DEATHS, EngineProcess
from radixrt.runtime.tokenizer import Tokenizer
from radixrt.runtime.wire import EngineFailed, FromEngine, Progress, Ready

TICK_S = 0.1
"""How often the loop looks at deadlines, the engine's process and signals at least."""

EXIT_POLL_S = 0.02
"""How often a process that was told to end is looked at."""

FAREWELL_S = 1.0
"""How long a runtime that ends waits for its clients to have read everything."""

HTTP_SOCKET = 1
"""Which of the clients' sockets is that of the HTTP process; the first is everybody's."""

_MAX_MESSAGES_A_ROUND = 32
"""Messages of clients handled before the engine's are looked at again."""


class Server:
    """Serves the model of ``config`` until it is told to stop. ``run`` is the whole life of it.

    Clients can connect before the engine is ready; they are answered when it is (``Lobby``).
    """

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        curve: ServerCurve | None = None,
        is_open: bool = False,
        http: HttpService | None = None,
        ready_file: Path | None = None,
        engine_command: tuple[str, ...] | None = None,
        ping_interval_s: float = PING_INTERVAL_S,
    ) -> None:
        """``is_open``: an endpoint that other machines reach needs no ``curve``. ``http``: run an
        HTTP process too. ``ready_file`` gets the endpoint, and the URL on a second line, when the
        runtime serves. ``engine_command`` runs another engine than the real one.
        ``ping_interval_s``: how often clients show that they live. Raises ``ConfigError``."""
        if config.endpoint:
            check_endpoint(config.endpoint, curve, is_open=is_open)
        self._config = config
        self._curve = curve
        self._http = http
        self._ready_file = ready_file
        self._engine_command = engine_command
        self._ping_interval_s = ping_interval_s
        self._report = Reporter(config.log_format)
        self._unreachable: list[bytes] = []
        self._early_deaths = 0
        self._ready: Ready | None = None
        self._is_engine_up = False
        self._is_announced = False
        self._num_stop_signals = 0
        self._drain_until: float | None = None
        self._poller = zmq.Poller()
        self._engine_socket: zmq.Socket[bytes] | None = None
        self._clients: list[ClientSocket] = []
        self._gateway: GatewayProcess | None = None
        self._gateway_output: int | None = None
        self._lobby = Lobby(self._send_client, config.max_clients)
        self._frontend: Frontend | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def stop(self) -> None:
        """Drain and end; a second time: end now, with an error for what runs; a third time: wait
        for nobody to read it. Safe in signal handlers and from other threads."""
        self._num_stop_signals += 1
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    def run(self) -> None:
        """Serve. Raises ``ModelError``, ``ConfigError`` and ``EngineFault`` when it cannot."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        with _signals(self), private_directory() as directory, self._report:
            command = {} if self._engine_command is None else {"command": self._engine_command}
            self._engine = EngineProcess(self._config, directory, context, **command)
            try:
                self._run(context, directory)
            finally:
                if self._ready_file is not None:
                    self._ready_file.unlink(missing_ok=True)
                self._take_leave()
                self._engine.stop(KILL_AFTER_S if self._is_engine_up else 0.0)
                context.destroy(linger=500)
                self._report.event("stopped")

    def _run(self, context: zmq.Context[zmq.Socket[bytes]], directory: Path) -> None:
        self._report.event("starting", str(self._config.model_path))
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._bind(context, directory)
        self._start_engine()
        path = self._config.model_path
        tokenizer = Tokenizer(path)
        chat = load_chat_format(path, tokenizer)
        if not chat.is_template:
            self._report.event(
                "warning", "the model has no chat template; roles are written as 'User: …' lines"
            )
        self._await_engine()
        if self._ready is None:
            return
        self._frontend = Frontend(
            self._config,
            self._ready,
            tokenizer,
            chat,
            send_client=self._send_client,
            send_engine=self._engine.send,
            ping_interval_s=self._ping_interval_s,
        )
        for client_id, messages in self._lobby.release():
            self._frontend.on_client(client_id, messages)
        # What exists now stays; a full collection need not walk it again and again.
        gc.freeze()
        try:
            self._serve(self._frontend)
        finally:
            gc.unfreeze()

    def _bind(self, context: zmq.Context[zmq.Socket[bytes]], directory: Path) -> None:
        """Open the clients' sockets, and start the HTTP process, which has one of its own."""
        endpoint = self._config.endpoint or f"ipc://{directory}/clients"
        self._clients.append(ClientSocket(endpoint, context, self._curve))
        if self._http is not None:
            own = f"ipc://{directory}/http"
            self._clients.append(ClientSocket(own, context, None))
            settings = functools.partial(self._http.settings, own)
            self._gateway = GatewayProcess(settings, self._http.command)
            self._gateway.start()
        for clients in self._clients:
            self._poller.register(clients.router, zmq.POLLIN)

    def _await_engine(self) -> None:
        """Wait for the first engine, or until the server is told to stop."""
        while self._ready is None and not self._num_stop_signals:
            code = self._engine.exit_code()  # before the last messages are read
            self._poll(TICK_S)
            self._watch_gateway()
            if code is not None and self._ready is None:
                raise EngineFault(f"the engine process ended while it started (exit code {code})")

    def _serve(self, frontend: Frontend) -> None:
        next_tick = 0.0
        while True:
            due = frontend.next_deadline
            self._poll(TICK_S if due is None else due - time.monotonic())
            now = time.monotonic()
            if now >= next_tick:
                frontend.on_tick()
                self._watch_engine()
                self._watch_gateway()
                next_tick = now + TICK_S
            if not self._is_announced:
                self._announce()
            if self._num_stop_signals == 1 and self._drain_until is None:
                self._drain_until = now + self._config.drain_s
                frontend.drain()
                self._report.event("draining", calls=frontend.num_calls)
            if self._num_stop_signals > 1:
                return
            until = self._drain_until
            if until is not None and (frontend.num_calls == 0 or now >= until):
                return

    def _poll(self, wait_s: float) -> None:
        """Handle what arrives within ``wait_s`` seconds, ``TICK_S`` at most."""
        ready = dict(self._poller.poll(int(1000 * min(TICK_S, max(0.0, wait_s))) + 1))
        if self._wake_read in ready:
            os.read(self._wake_read, 64)
        if self._gateway_output in ready:
            self._watch_gateway()
        if self._engine.socket in ready:
            self._on_engine(self._engine.receive())
        for index, clients in enumerate(self._clients):
            if clients.router in ready:
                self._receive_clients(index)
        while self._unreachable:
            client_id = self._unreachable.pop()
            self._lobby.drop(client_id)
            if self._frontend is not None:
                self._frontend.drop_client(client_id)

    def _take_leave(self) -> None:
        """Fail what still runs, say goodbye to everybody and end the HTTP process.

        That process gets its goodbye like all clients, so the answers it owes are on their way when
        it is told to end.
        """
        client_ids = self._lobby.client_ids
        reason = "the runtime is shutting down"
        if self._frontend is not None:
            client_ids = self._frontend.client_ids
            self._frontend.close(reason)
        for client_id in self._lobby.client_ids:
            self._send_client(client_id, [Goodbye(reason)])
        if self._clients:
            self._await_farewells(client_ids)
        if self._gateway is not None:
            self._end_gateway(self._gateway)
        for clients in self._clients:
            clients.close()

    def _end_gateway(self, gateway: GatewayProcess) -> None:
        """Let the HTTP process hand over its answers, to slow readers too, as long as the drain
        lasts; after a second stop signal within ``FAREWELL_S``."""
        gateway.terminate()
        farewell = time.monotonic() + FAREWELL_S
        while gateway.is_running and self._num_stop_signals < 3:
            drained = 0.0 if self._num_stop_signals > 1 else self._drain_until or 0.0
            if time.monotonic() >= max(farewell, drained):
                break
            time.sleep(EXIT_POLL_S)
        gateway.stop(0.0)

    def _await_farewells(self, client_ids: set[bytes]) -> None:
        """Keep the clients' sockets open until each of them has answered the goodbye.

        A client that writes to a closed connection loses what it has not read yet, its last
        replies among it. Bounded by ``FAREWELL_S``; a third stop signal skips it.
        """
        poller = zmq.Poller()
        for clients in self._clients:
            poller.register(clients.router, zmq.POLLIN)
        until = time.monotonic() + FAREWELL_S
        while client_ids and self._num_stop_signals < 3:
            left_s = until - time.monotonic()
            ready = dict(poller.poll(int(left_s * 1000) + 1)) if left_s > 0 else {}
            if not ready:
                return
            for index, clients in enumerate(self._clients):
                if clients.router in ready:
                    client_id, *frames = clients.router.recv_multipart(zmq.NOBLOCK)
                    if any(isinstance(_decoded(frame), Goodbye) for frame in frames):
                        client_ids.discard(bytes([index]) + client_id)

    def _start_engine(self) -> None:
        if self._engine_socket is not None:
            self._poller.unregister(self._engine_socket)
        self._engine.start()
        self._engine_socket = self._engine.socket
        self._poller.register(self._engine_socket, zmq.POLLIN)

    # ------------------------------------------------------------ clients

    def _receive_clients(self, index: int) -> None:
        """``index`` of the socket; it is the first byte of its clients' ids, which are unique for a
        socket."""
        router = self._clients[index].router
        handler = self._lobby if self._frontend is None else self._frontend
        for _ in range(_MAX_MESSAGES_A_ROUND):
            if not has_message(router):
                return
            client_id, *frames = router.recv_multipart(zmq.NOBLOCK)
            handler.on_client(bytes([index]) + client_id, [_decoded(frame) for frame in frames])

    def _send_client(self, client_id: bytes, messages: list[ToClient]) -> None:
        try:
            router = self._clients[client_id[0]].router
            router.send_multipart([client_id[1:], *map(encode, messages)], zmq.NOBLOCK)
        except zmq.Again:  # it does not read
            self._unreachable.append(client_id)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._unreachable.append(client_id)

    # ------------------------------------------------------------ the processes beside

    def _on_engine(self, messages: list[FromEngine]) -> None:
        for message in messages:
            match message:
                case Progress():
                    self._report.progress(message)
                    if self._frontend is None:
                        self._lobby.tell("starting", _told(message))
                case EngineFailed(id=None):
                    if self._frontend is None:
                        raise EngineFault(f"the engine could not start: {message.message}")
                    self._report.event("engine failed", message.message)
                case Ready():
                    if self._ready is not None:
                        self._report.event("engine is back", pid=self._engine.pid)
                    self._ready = self._ready or message
                    self._is_engine_up = True
                    self._early_deaths = 0
                case _:
                    pass
        if self._frontend is not None:
            self._frontend.on_engine(messages)

    def _watch_engine(self) -> None:
        code = self._engine.exit_code()
        if code is None or self._frontend is None:
            return
        self._on_engine(self._engine.receive())
        reason = f"the engine process died (exit code {code})"
        self._report.event("engine died", f"exit code {code}")
        self._early_deaths = 0 if self._is_engine_up else self._early_deaths + 1
        self._is_engine_up = False
        self._frontend.on_engine_down(reason)
        if self._early_deaths >= MAX_EARLY_DEATHS:
            raise EngineFault(f"{reason} {self._early_deaths} times while it started")
        self._start_engine()

    def _watch_gateway(self) -> None:
        if self._gateway is None:
            return
        was_up = self._gateway.url is not None
        what = self._gateway.poll()
        if what is not None:
            self._report.event("http", what)
        if was_up and self._gateway.url is None and self._frontend is not None:
            # What it asked for has nobody to read it; three missed pings would tell us later.
            for client_id in self._frontend.client_ids:
                if client_id[0] == HTTP_SOCKET:
                    self._frontend.drop_client(client_id)
        # Nothing follows the line that says where it listens, but its end does.
        output = None if self._gateway.url else self._gateway.output
        if output != self._gateway_output:
            if self._gateway_output is not None:
                self._poller.unregister(self._gateway_output)
            if output is not None:
                self._poller.register(output, zmq.POLLIN)
            self._gateway_output = output

    # ------------------------------------------------------------ what the user sees

    def _announce(self) -> None:
        """Say that the runtime serves, once clients of both kinds can be answered."""
        url = None if self._gateway is None else self._gateway.url
        if self._ready is None or (self._gateway is not None and url is None):
            return
        self._is_announced = True
        endpoint = self._clients[0].endpoint
        self._report.ready(self._ready.info, endpoint, url, self._http)
        if self._ready_file is not None:
            partial = self._ready_file.with_name(self._ready_file.name + ".partial")
            lines = [endpoint] if url is None else [endpoint, url]
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
            partial.replace(self._ready_file)


def _told(progress: Progress) -> str:
    return f"{progress.phase} {progress.detail}".strip()


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
