"""A runtime in this process: the frontend and the engine on a thread each."""

from __future__ import annotations

import importlib
import itertools
import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol

from radixrt.config import RuntimeConfig
from radixrt.errors import EngineFault, RadixError, RuntimeUnavailable, TransportError
from radixrt.protocol import Goodbye, ToClient, ToRuntime
from radixrt.runtime.channel import EngineChannel, LocalEngineChannel
from radixrt.runtime.frontend.chat import load_chat_format
from radixrt.runtime.frontend.frontend import Frontend
from radixrt.runtime.tokenizer import Tokenizer
from radixrt.runtime.wire import EngineFailed, FromEngine, Ready, Shutdown
from radixrt.transport import LocalTransport

log = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0
"""How long a model may take to load."""

_TICK_S = 0.2


class Loop(Protocol):
    """What runs the engine until shutdown."""

    def run(self) -> None: ...


BuildLoop = Callable[[RuntimeConfig, EngineChannel], Loop]
Event = tuple[bytes | None, list[ToRuntime] | list[FromEngine] | BaseException | None]
"""From a client, from the engine (no client id), the engine's end (its error), the stop (None)."""


class LocalRuntime:
    """Frontend and engine of ``config`` on threads of this process.

    The constructor returns when the model serves. Raises ``ModelError``, ``ConfigError`` and what
    else the engine fails with.
    """

    def __init__(self, config: RuntimeConfig, *, build_loop: BuildLoop | None = None) -> None:
        """``build_loop``: another engine than the real one."""
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._transports: dict[bytes, LocalTransport] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._is_shut_down = False
        self._channel = LocalEngineChannel(lambda messages: self._events.put((None, messages)))
        tokenizer = Tokenizer(config.model_path)
        chat = load_chat_format(config.model_path, tokenizer)
        if not chat.is_template:
            log.warning("%s has no chat template; roles are plain lines", config.model_path)
        if build_loop is None:
            build_loop = importlib.import_module("radixrt.runtime.engine.assemble").build_loop
        self._engine_thread = threading.Thread(
            target=self._run_engine, args=(build_loop, config), name="radixrt-engine", daemon=True
        )
        self._engine_thread.start()
        try:
            ready = self._await_ready()
        except BaseException:
            # An interpreter that ends under a thread that loads a model crashes.
            self._channel.put([Shutdown(0.0)])
            self._engine_thread.join(timeout=10.0)
            raise
        self._frontend = Frontend(
            config,
            ready,
            tokenizer,
            chat,
            send_client=self._send_client,
            send_engine=self._channel.put,
            watches_clients=False,  # a client in this process is there as long as we are
        )
        self._frontend_thread = threading.Thread(
            target=self._run_frontend, name="radixrt-frontend", daemon=True
        )
        self._frontend_thread.start()

    def transport(self) -> LocalTransport:
        """Return a new connection."""
        client_id = next(self._numbers).to_bytes(8, "big")
        transport = LocalTransport(lambda messages: self._events.put((client_id, messages)))
        with self._lock:
            if self._is_shut_down:
                raise TransportError("the runtime is shut down")
            self._transports[client_id] = transport
        return transport

    def shutdown(self) -> None:
        """Fail what runs and end both threads. Idempotent."""
        with self._lock:
            if self._is_shut_down:
                return
            self._is_shut_down = True
        self._channel.put([Shutdown(0.0)])
        self._events.put((b"", None))
        self._frontend_thread.join(timeout=10.0)
        self._engine_thread.join(timeout=10.0)

    # ------------------------------------------------------------ the engine's thread

    def _run_engine(self, build_loop: BuildLoop, config: RuntimeConfig) -> None:
        try:
            build_loop(config, self._channel).run()
            self._events.put((None, EngineFault("the engine has ended")))
        except BaseException as error:
            self._events.put((None, error))

    def _await_ready(self) -> Ready:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                _, event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise RuntimeUnavailable(
                    f"the model was not ready within {START_TIMEOUT_S:g} s"
                ) from None
            if isinstance(event, RadixError):
                raise event
            if isinstance(event, BaseException):
                raise EngineFault(f"the engine could not start: {event!r}") from event
            for message in event or ():
                if isinstance(message, Ready):
                    return message
                if isinstance(message, EngineFailed):
                    raise EngineFault(message.message)

    # ------------------------------------------------------------ the frontend's thread

    def _run_frontend(self) -> None:
        reason = "the runtime is shut down"
        try:
            next_tick = 0.0
            while True:
                if time.monotonic() >= next_tick:
                    self._frontend.on_tick()
                    next_tick = time.monotonic() + self._wait_s()
                try:
                    timeout = max(next_tick - time.monotonic(), 0.0)
                    client_id, event = self._events.get(timeout=timeout)
                except Empty:
                    continue
                if event is None:
                    break
                if isinstance(event, BaseException):
                    reason = f"the engine failed: {event!r}"
                    self._frontend.on_engine_down(reason)
                    break
                if client_id is None:
                    self._frontend.on_engine(event)  # type: ignore[arg-type]
                else:
                    self._frontend.on_client(client_id, event)  # type: ignore[arg-type]
                    if event and isinstance(event[-1], Goodbye):
                        with self._lock:
                            self._transports.pop(client_id, None)
        except BaseException as error:
            reason = f"the frontend failed: {error!r}"
            raise
        finally:
            self._end_clients(reason)

    def _wait_s(self) -> float:
        deadline = self._frontend.next_deadline
        if deadline is None:
            return _TICK_S
        return min(max(deadline - time.monotonic(), 0.001), _TICK_S)

    def _end_clients(self, reason: str) -> None:
        with self._lock:
            self._is_shut_down = True
            transports = list(self._transports.values())
        self._frontend.close(reason)
        self._channel.put([Shutdown(0.0)])
        for transport in transports:
            transport.fail(TransportError(reason))

    def _send_client(self, client_id: bytes, messages: list[ToClient]) -> None:
        with self._lock:
            transport = self._transports.get(client_id)
        if transport is not None:
            transport.put(messages)
