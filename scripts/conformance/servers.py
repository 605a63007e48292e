"""Servers with the shipped model, each in processes of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PYTHON = os.environ.get("CONFORMANCE_SERVE", sys.executable)
"""The interpreter of the environment that has radixrt."""

START_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it takes HTTP and ZeroMQ, and where its log is."""

    url: str
    endpoint: str
    log: Path


@contextlib.contextmanager
def serving(*options: str) -> Iterator[Server]:
    """A server, ended with the block."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as name:
        directory = Path(name)
        ready, log = directory / "ready", directory / "server.log"
        command = [str(Path(PYTHON).with_name("radixrt")), "serve", "--port", "0"]
        command += ["--ready-file", str(ready), *options]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not ready.exists() or len(ready.read_text().split()) < 2:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")
                time.sleep(0.05)
            endpoint, url = ready.read_text().split()[:2]
            yield Server(url, endpoint, log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
