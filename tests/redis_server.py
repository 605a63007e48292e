"""A real Redis or Valkey server for tests, on a socket in a directory of their own."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

SERVER = shutil.which("redis-server") or shutil.which("valkey-server")

needs_server = pytest.mark.skipif(
    SERVER is None, reason="no redis-server here: the remote tier is not tested (.ci/run has one)"
)


class Server:
    """A server on a socket in a directory of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        assert SERVER is not None
        self._process = subprocess.Popen(
            [SERVER, "--port", "0", "--unixsocket", str(self.socket), "--save", "", *options],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )
        end = time.monotonic() + 20
        import redis

        client = redis.Redis.from_url(self.url)
        while time.monotonic() < end:
            try:
                client.ping()
            except redis.RedisError:
                time.sleep(0.01)
            else:
                client.close()
                return
        raise AssertionError("the server does not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.socket.unlink(missing_ok=True)
