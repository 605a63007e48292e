"""A server in processes of its own, and a client that drives it over ZeroMQ."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from radixrt.bench.workloads import Prompts
from radixrt.config import RuntimeConfig
from radixrt.errors import EngineFault, RuntimeUnavailable, failure
from radixrt.protocol import (
    Append,
    Close,
    Failed,
    Finished,
    Flush,
    Generate,
    Goodbye,
    Hello,
    Open,
    Part,
    Reply,
    Sampling,
    Stats,
    ToClient,
    ToRuntime,
    Welcome,
)
from radixrt.transport import Transport, ZmqTransport

START_LIMIT_S = 1800.0
"""How long a server may take to start."""

STOP_LIMIT_S = 30.0
"""How long a server that was told to end may take."""

LOOK_S = 0.01
"""How often the file is looked for that says that the server is ready."""

LOG_TAIL = 2000
"""Characters of the server's log that an error shows."""


@contextlib.contextmanager
def serving(config: RuntimeConfig) -> Iterator[str]:
    """Run ``radixrt serve`` for the context and yield its endpoint once clients can connect.

    Raises ``EngineFault`` with the end of its log when it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="radixrt-bench-") as folder:
        ready_file, log_file = Path(folder, "ready"), Path(folder, "log")
        command = [sys.executable, "-m", "radixrt", *serve_arguments(config)]
        command += ["--no-http", "--ready-file", str(ready_file)]
        with log_file.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _await_ready(process, ready_file, log_file)
            yield ready_file.read_text(encoding="utf-8").strip()
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def serve_arguments(config: RuntimeConfig) -> list[str]:
    """Return the command line after ``radixrt`` that serves ``config``."""
    arguments = ["serve"]
    if config.model is not None:
        arguments.append(str(config.model))
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "model" or value == field.default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments.append(f"--{flag}={value}")
    return arguments


class ServerDriver:
    """Drives a server as one client; every request is a branch of its own."""

    def __init__(self, transport: Transport) -> None:
        """Opens the session. Raises ``TransportError`` when nobody answers."""
        self._transport = transport
        self._ids = itertools.count(1)
        self._branches: list[int] = []
        transport.send([Hello(client="radixrt bench")])
        welcome = next(message for message in self._receive() if isinstance(message, Welcome))
        self._max_calls = welcome.limits.max_calls
        self.vocab_size = welcome.model.vocab_size

    @classmethod
    def connect(cls, endpoint: str) -> ServerDriver:
        """Connect to a server."""
        return cls(ZmqTransport(endpoint, timeout_s=60.0))

    def generate(self, prompts: Prompts, max_new: list[int]) -> Prompts:
        """Run all prompts to their end, as many at a time as the server takes of one client, and
        return what was generated. Raises ``CallFailed``."""
        calls = [next(self._ids) for _ in prompts]
        self._branches += calls
        requests = iter(zip(calls, prompts, max_new, strict=True))
        outputs: dict[int, list[int]] = {}
        for request in itertools.islice(requests, self._max_calls):
            self._transport.send(_messages(*request))
        while len(outputs) < len(calls):
            for message in self._receive():
                if isinstance(message, Finished):
                    outputs[message.call] = list(message.outputs[0].token_ids)
                    for request in itertools.islice(requests, 1):
                        self._transport.send(_messages(*request))
        for call, limit in zip(calls, max_new, strict=True):
            assert len(outputs[call]) == limit
        return [outputs[call] for call in calls]

    def flush(self) -> None:
        """Close what was opened and empty the cache."""
        self._transport.send([Close(branch) for branch in self._branches])
        self._branches = []
        self._ask(Flush(next(self._ids)))

    def stats(self) -> dict[str, Any]:
        """Return the runtime's counters."""
        return self._ask(Stats(next(self._ids)))

    def close(self) -> None:
        """End the session."""
        self._transport.close()

    def _ask(self, question: Flush | Stats) -> dict[str, Any]:
        self._transport.send([question])
        while True:
            for message in self._receive():
                if isinstance(message, Reply) and message.call == question.call:
                    return message.data

    def _receive(self) -> Sequence[ToClient]:
        """Wait for messages; a refusal or a farewell is an error."""
        messages: list[ToClient] = []
        while not messages:
            messages = self._transport.receive(1.0)
        for message in messages:
            if isinstance(message, Failed):
                raise failure(message.code, message.message)
            if isinstance(message, Goodbye):
                raise RuntimeUnavailable(f"the server ended the session: {message.reason}")
        return messages


def _messages(call: int, prompt: list[int], max_new: int) -> list[ToRuntime]:
    sampling = Sampling(max_tokens=max_new, temperature=0.0, ignore_eos=True)
    return [
        Open(call),
        Append(call, (Part("tokens", token_ids=tuple(prompt)),)),
        Generate(call, call, sampling),
    ]


def _await_ready(process: subprocess.Popen[bytes], ready_file: Path, log_file: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not ready_file.exists():
        if process.poll() is not None:
            raise EngineFault(f"the server did not start:\n{_tail(log_file)}")
        if time.monotonic() > deadline:
            text = f"the server was not ready within {START_LIMIT_S:g} s:\n{_tail(log_file)}"
            raise EngineFault(text)
        time.sleep(LOOK_S)


def _tail(log_file: Path) -> str:
    return log_file.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:].strip()
