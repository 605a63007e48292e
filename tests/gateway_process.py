"""A gateway process, and the shipped model behind one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from runtime_process import ROOT, hello, receive_until

from radixrt.gateway.settings import GatewaySettings
from radixrt.protocol import Reply, Stats
from radixrt.transport import ZmqTransport


class Gateway:
    """An HTTP process and a client of it."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=30.0, trust_env=False)

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.http.post(path, json=fields)

    def chat(self, content: Any = "Where does Maria live?", **fields: Any) -> dict[str, Any]:
        """Return the answer to a message."""
        fields.setdefault("messages", [{"role": "user", "content": content}])
        return self.ok("/v1/chat/completions", **fields)

    def ok(self, path: str, **fields: Any) -> dict[str, Any]:
        """Return what a request is answered with, which is no error."""
        answer = self.post(path, **fields)
        assert answer.status_code == 200, answer.text
        data: dict[str, Any] = answer.json()
        return data

    def refused(self, path: str, status: int = 400, **fields: Any) -> dict[str, Any]:
        """Return the error that a request is answered with, in OpenAI's shape."""
        answer = self.post(path, **fields)
        assert answer.status_code == status, answer.text
        return error_of(answer)

    def events(self, path: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the events of a stream, which is whole."""
        answer = self.post(path, stream=True, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        *events, end = answer.text.removesuffix("\n\n").split("\n\n")
        assert end == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def await_phase(self, *phases: str, timeout_s: float = 30.0) -> None:
        """Wait until ``/ready`` tells one of ``phases``."""
        deadline = time.monotonic() + timeout_s
        while (now := self.http.get("/ready").json()["status"]) not in phases:
            assert time.monotonic() < deadline, now
            time.sleep(0.01)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """Return the error in an answer, whose shape is right."""
    data = answer.json()
    assert data.keys() == {"error"}
    assert data["error"].keys() == {"message", "type", "param", "code"}
    assert data["error"]["message"]
    error: dict[str, Any] = data["error"]
    return error


@contextlib.contextmanager
def gateway(endpoint: str, **settings: Any) -> Iterator[Gateway]:
    """A gateway of its own for a runtime, ended with the block."""
    line = GatewaySettings(endpoint=endpoint, **settings).to_json() + b"\n"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "radixrt.gateway"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    served = Gateway(process, json.loads(process.stdout.readline())["url"])
    try:
        yield served
    finally:
        served.http.close()
        process.stdin.close()  # as when the parent has ended
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class Nano:
    """The shipped model, served over ZeroMQ; gateways are made to it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def stats(self) -> dict[str, Any]:
        return stats_of(self.endpoint)


def stats_of(endpoint: str) -> dict[str, Any]:
    """Return a runtime's counters."""
    transport = ZmqTransport(endpoint)
    try:
        hello(transport)
        transport.send([Stats(1)])
        got = receive_until(transport, lambda got: any(isinstance(m, Reply) for m in got))
        return next(m.data for m in got if isinstance(m, Reply))
    finally:
        transport.close()


def await_stats(endpoint: str, is_right, timeout_s: float = 20.0) -> dict[str, Any]:  # type: ignore[no-untyped-def]
    """Return the counters of a runtime once ``is_right(them)``."""
    deadline = time.monotonic() + timeout_s
    while not is_right(stats := stats_of(endpoint)):
        assert time.monotonic() < deadline, stats
    return stats


_SERVE_NANO = """
import sys
from pathlib import Path
from radixrt.config import RuntimeConfig
from radixrt.runtime.serving.server import Server
model = Path(sys.argv[2]) if sys.argv[2:] else None
config = RuntimeConfig(model=model, memory="256MiB", device="cpu")
Server(config, ready_file=Path(sys.argv[1])).run()
"""


@contextlib.contextmanager
def serving_nano(directory: Path, model: Path | None = None) -> Iterator[Nano]:
    """The shipped model, or one like it, in a process of its own."""
    ready_file = directory / "ready"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE_NANO, str(ready_file), *([str(model)] if model else [])],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not ready_file.exists():
            assert process.poll() is None, "the runtime ended while it started"
            assert time.monotonic() < deadline, "the runtime did not start"
            time.sleep(0.02)
        yield Nano(ready_file.read_text().split()[0])
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
