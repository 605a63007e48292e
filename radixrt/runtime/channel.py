"""The engine's end of its connection to the frontend: queues in one process, a private socket
between two."""

from __future__ import annotations

import os
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol

import zmq

from radixrt.errors import TransportError
from radixrt.runtime.wire import (
    FromEngine,
    Shutdown,
    ToEngine,
    decode_to_engine,
    encode_batch,
)

ENGINE_HIGH_WATER_MARK = 100_000
"""Batches that may wait in one direction between frontend and engine."""

SEND_TIMEOUT_S = 30.0
"""How long the engine waits for a frontend that does not read."""


class EngineChannel(Protocol):
    """What the engine loop reads from and writes to."""

    def receive(self, timeout_s: float) -> list[ToEngine]:
        """Return what has arrived, in order; ``[]`` after ``timeout_s`` seconds; 0 polls."""

    def send(self, messages: list[FromEngine]) -> None:
        """Send messages to the frontend, in order."""


class LocalEngineChannel:
    """A channel in one process: messages are passed as objects.

    ``deliver`` takes what the engine sends, on the engine's thread; ``put`` is the way to it.
    """

    def __init__(self, deliver: Callable[[list[FromEngine]], None]) -> None:
        self._deliver = deliver
        self._inbox: SimpleQueue[list[ToEngine]] = SimpleQueue()

    def put(self, messages: list[ToEngine]) -> None:
        """Make messages available to ``receive``."""
        self._inbox.put(messages)

    def receive(self, timeout_s: float) -> list[ToEngine]:
        messages: list[ToEngine] = []
        try:
            if timeout_s > 0:
                messages += self._inbox.get(timeout=timeout_s)
            while True:
                messages += self._inbox.get_nowait()
        except Empty:
            return messages

    def send(self, messages: list[FromEngine]) -> None:
        self._deliver(messages)


class ZmqEngineChannel:
    """A channel to the frontend's process. When that process is gone, ``receive`` says shutdown."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context(io_threads=1)
        self._socket = engine_socket(self._context)
        self._socket.connect(endpoint)
        self._parent = os.getppid()

    def receive(self, timeout_s: float) -> list[ToEngine]:
        messages: list[ToEngine] = []
        if timeout_s > 0 and not self._socket.poll(int(timeout_s * 1000) + 1, zmq.POLLIN):
            return self._without_frontend()
        while has_message(self._socket):
            messages += decode_to_engine(self._socket.recv(zmq.NOBLOCK))
        return messages or self._without_frontend()

    def send(self, messages: list[FromEngine]) -> None:
        try:
            self._socket.send(encode_batch(messages))
        except zmq.Again:
            raise TransportError(
                f"the frontend has read nothing for {SEND_TIMEOUT_S:g} s"
            ) from None

    def close(self) -> None:
        """Send what is under way and end."""
        self._context.destroy(linger=1000)

    def _without_frontend(self) -> list[ToEngine]:
        return [] if os.getppid() == self._parent else [Shutdown(0.0)]


def has_message(socket: zmq.Socket[bytes]) -> bool:
    """Whether a receive would find something; cheaper than the exception when it does not."""
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)


def engine_socket(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Return a PAIR socket as both ends of the connection use it."""
    socket = context.socket(zmq.PAIR)
    socket.linger = 1000
    socket.sndhwm = socket.rcvhwm = ENGINE_HIGH_WATER_MARK
    socket.sndtimeo = int(SEND_TIMEOUT_S * 1000)
    return socket
