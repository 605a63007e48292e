"""One real server with the shipped model, for the tests that look at it from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import radixrt as rt

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The endpoint and the URL of a real server with the shipped model."""
    ready = tmp_path_factory.mktemp("serve") / "ready"
    command = [sys.executable, "-m", "radixrt", "serve", "--port", "0", "--memory", "256MiB"]
    process = subprocess.Popen(
        [*command, "--ready-file", str(ready)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None, "the server ended while it started"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.02)
        endpoint, url = ready.read_text().split()
        yield endpoint, url
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def backend(served: tuple[str, str]) -> Iterator[rt.Backend]:
    with rt.connect(served[0]) as backend:
        yield backend
