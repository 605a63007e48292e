"""The engine's process: started, watched, restarted and stopped by the frontend's."""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import zmq

from radixrt.config import RuntimeConfig
from radixrt.errors import RadixError
from radixrt.runtime.channel import ZmqEngineChannel, engine_socket, has_message
from radixrt.runtime.wire import (
    EngineFailed,
    FromEngine,
    Shutdown,
    ToEngine,
    decode_from_engine,
    encode_batch,
)

MAX_EARLY_DEATHS = 3
"""Engines in a row that may die before they are ready; then the runtime gives up."""

KILL_AFTER_S = 5.0
"""How long a process that was told to end may take."""


class EngineProcess:
    """An engine in a process of its own, with a private ipc socket in ``directory``.

    ``command`` is what runs it; the socket's endpoint is appended, the config comes on its standard
    input. Every start has a socket of its own, so nothing of a dead engine is ever read.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        directory: Path,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        command: tuple[str, ...] = (sys.executable, "-m", "radixrt.runtime", "--engine"),
    ) -> None:
        self._config = config
        self._directory = directory
        self._context = context
        self._command = command
        self._num_starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: zmq.Socket[bytes] | None = None

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """What to poll; another one after every ``start``."""
        assert self._socket is not None
        return self._socket

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process; the one before has ended."""
        if self._socket is not None:
            self._socket.close(linger=0)
        self._num_starts += 1
        endpoint = f"ipc://{self._directory}/engine-{self._num_starts}"
        self._socket = engine_socket(self._context)
        self._socket.bind(endpoint)
        # A process group of its own: Ctrl-C in a terminal is for the frontend, which drains.
        self._process = subprocess.Popen(
            (*self._command, endpoint), stdin=subprocess.PIPE, process_group=0
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(dump_config(self._config))

    def exit_code(self) -> int | None:
        """Return how the process ended; None while it runs."""
        return None if self._process is None else self._process.poll()

    def send(self, messages: list[ToEngine]) -> None:
        """Send messages; a dead engine misses them, and its calls fail when its end is noticed."""
        with contextlib.suppress(zmq.Again):
            self.socket.send(encode_batch(messages), zmq.NOBLOCK)

    def receive(self) -> list[FromEngine]:
        """Return what has arrived, without waiting."""
        messages: list[FromEngine] = []
        while has_message(self.socket):
            messages += decode_from_engine(self.socket.recv(zmq.NOBLOCK))
        return messages

    def stop(self, timeout_s: float = KILL_AFTER_S) -> None:
        """End the process, in the end by force."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            self.send([Shutdown(0.0)])
        deadline = time.monotonic() + timeout_s
        for end in (None, process.terminate, process.kill):
            if end is not None and process.poll() is None:
                end()
                deadline = time.monotonic() + KILL_AFTER_S
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        if self._socket is not None:
            self._socket.close(linger=0)


_PATHS = ("model", "disk")


def dump_config(config: RuntimeConfig) -> bytes:
    """Return a config as JSON."""
    fields = asdict(config)
    for name in _PATHS:
        fields[name] = None if fields[name] is None else str(fields[name])
    return json.dumps(fields).encode()


def load_config(data: bytes) -> RuntimeConfig:
    """Return the config of ``dump_config``'s JSON."""
    fields: dict[str, Any] = json.loads(data)
    for name in _PATHS:
        fields[name] = None if fields[name] is None else Path(fields[name])
    return RuntimeConfig.of(**fields)


def run_engine(endpoint: str) -> int:
    """Be the engine process: serve the frontend at ``endpoint`` until it says shutdown.

    Returns the exit code. The config is read from standard input.
    """
    import importlib

    config = load_config(sys.stdin.buffer.read())
    channel = ZmqEngineChannel(endpoint)
    try:
        # By name: this file belongs to the frontend's process too, which has no torch.
        assemble = importlib.import_module("radixrt.runtime.engine.assemble")
        try:
            loop = assemble.build_loop(config, channel)
        except RadixError as error:  # for its user to mend: the message says it all
            channel.send([EngineFailed(None, "engine_fault", str(error))])
            return 1
        # What exists now stays; a full collection need not walk it again and again.
        gc.freeze()
        loop.run()
        gc.unfreeze()  # so that what exists is taken down in order
    except Exception as error:
        channel.send([EngineFailed(None, "engine_fault", f"{type(error).__name__}: {error}")])
        raise
    finally:
        channel.close()
    return 0
