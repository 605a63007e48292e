"""A runtime process with the fake engine, for tests over sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from radixrt.protocol import Hello, ToClient, ToRuntime, Welcome
from radixrt.transport import Transport, ZmqTransport

ROOT = Path(__file__).parent.parent
FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"

FAKE_GATEWAY = Path(__file__).parent / "fake_gateway.py"

_SERVE = """
import json, sys
from pathlib import Path
from radixrt.config import RuntimeConfig
from radixrt.runtime.endpoints import ServerCurve
from radixrt.runtime.serving.gateway_process import HttpService
from radixrt.runtime.serving.server import Server
given = json.loads(sys.argv[1])
curve = ServerCurve(*map(Path, given["curve"])) if given["curve"] else None
config = RuntimeConfig(
    model=Path(given["model"]), endpoint=given["endpoint"], drain_s=given["drain_s"]
)
settings = lambda endpoint, port: json.dumps({"endpoint": endpoint, "port": port}).encode()
http = HttpService(settings, command=tuple(given["gateway"])) if given["gateway"] else None
Server(
    config,
    curve=curve,
    ready_file=Path(given["ready_file"]),
    engine_command=tuple(given["engine"]),
    http=http,
    ping_interval_s=1.0,
).run()
"""


class RuntimeProcess:
    """``serve`` in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], ready_file: Path) -> None:
        self.process = process
        self._ready_file = ready_file
        self.endpoint = ""
        self.url = ""

    def await_ready(self, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._ready_file.exists():
            assert self.process.poll() is None, "the runtime ended while it started"
            assert time.monotonic() < deadline, "the runtime did not start"
            time.sleep(0.01)
        self.endpoint, *urls = self._ready_file.read_text().split()
        self.url = urls[0] if urls else ""

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 20.0) -> int:
        return self.process.wait(timeout_s)

    def connect(self) -> ZmqTransport:
        transport = ZmqTransport(self.endpoint)
        hello(transport)
        return transport


@contextlib.contextmanager
def serving(
    model: Path,
    directory: Path,
    *,
    endpoint: str = "",
    drain_s: float = 5.0,
    curve: tuple[Path, Path] | None = None,
    engine: Sequence[str] = (),
    gateway: Sequence[str] | None = None,
    stderr: int | None = subprocess.DEVNULL,
) -> Iterator[RuntimeProcess]:
    """A runtime over the fake engine (with further arguments ``engine``), and over the fake HTTP
    process if it gets arguments, ended with the block."""
    ready_file = directory / "ready"
    python = sys.executable
    given = {
        "model": str(model),
        "endpoint": endpoint,
        "ready_file": str(ready_file),
        "drain_s": drain_s,
        "curve": None if curve is None else list(map(str, curve)),
        "engine": [python, str(FAKE_ENGINE), *engine],
        "gateway": [] if gateway is None else [python, str(FAKE_GATEWAY), *gateway],
    }
    command = [python, "-c", _SERVE, json.dumps(given)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=stderr)
    runtime = RuntimeProcess(process, ready_file)
    try:
        yield runtime
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def hello(transport: Transport) -> Welcome:
    transport.send([Hello()])
    welcome = receive_until(transport, lambda got: any(isinstance(m, Welcome) for m in got))[-1]
    assert isinstance(welcome, Welcome)
    return welcome


def receive_until(transport: Transport, is_enough, timeout_s: float = 30.0) -> list[ToClient]:  # type: ignore[no-untyped-def]
    """Receive until ``is_enough(all messages so far)``."""
    deadline = time.monotonic() + timeout_s
    got: list[ToClient] = []
    while not is_enough(got):
        assert time.monotonic() < deadline, got
        got += transport.receive(1.0)
    return got


def ask(transport: Transport, messages: Sequence[ToRuntime], num_answers: int) -> list[ToClient]:
    """Send, and return the next ``num_answers`` messages that come."""
    transport.send(messages)
    return receive_until(transport, lambda got: len(got) >= num_answers)
