"""The HTTP process: started, watched, restarted and stopped by the server's.

It is a client of the runtime like any other. Its settings are one line of JSON on its standard
input, which stays open: the end of it tells the process that its parent is gone. When it listens it
says so in one line of JSON on its standard output: ``{"url": …}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from radixrt.errors import ConfigError

GATEWAY_COMMAND = (sys.executable, "-m", "radixrt.gateway")

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
"""Pauses before a process that died is started again, doubled from one death to the next."""

START_LIMIT_S = 60.0
"""How long it may take until it listens."""

_MAX_LINE = 4096

Settings = Callable[[int | None], bytes]
"""The JSON of the settings; with a port, the one to listen at, else the one that was asked for."""


@dataclass(frozen=True, slots=True)
class HttpService:
    """What an HTTP process is to be.

    ``settings`` makes its JSON from the runtime's endpoint and a port as of ``Settings``. It serves
    the model as ``model_name``, by the model's own name when empty; ``needs_key``: to those who
    have one. ``command`` runs it.
    """

    settings: Callable[[str, int | None], bytes]
    model_name: str = ""
    needs_key: bool = False
    command: tuple[str, ...] = GATEWAY_COMMAND


class GatewayProcess:
    """An HTTP process and what became of it. ``poll`` is to be called now and then."""

    def __init__(
        self,
        settings: Settings,
        command: tuple[str, ...] = GATEWAY_COMMAND,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._command = command
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._line = b""
        self._port: int | None = None
        self._started = 0.0
        self._delay_s = FIRST_DELAY_S
        self._start_at: float | None = None
        self.url: str | None = None
        """Where it listens; None while it does not."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def output(self) -> int | None:
        """File descriptor that is readable when ``poll`` has something to read."""
        stdout = None if self._process is None else self._process.stdout
        return None if stdout is None or stdout.closed else stdout.fileno()

    def start(self) -> None:
        """Start the process."""
        # A process group of its own: Ctrl-C in a terminal is for the server, which drains.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._line, self._started, self._start_at = b"", self._clock(), None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(self._settings(self._port) + b"\n")
            self._process.stdin.flush()

    def poll(self) -> str | None:
        """Read what it said, start it again when it is time to; return what happened, if anything.

        Raises ``ConfigError`` when it never listened: it cannot, and has said why.
        """
        if self._start_at is not None and self._clock() >= self._start_at:
            self.start()
        process = self._process
        if process is None or self._start_at is not None:
            return None
        if self._read_url():
            self._delay_s = FIRST_DELAY_S
            return f"listens at {self.url}"
        code = process.poll()
        if code is None:
            if self.url is None and self._clock() - self._started > START_LIMIT_S:
                process.kill()
            return None
        self._close()
        if self._port is None:
            raise ConfigError(
                f"the HTTP process ended while it started (exit code {code}); it has said why. "
                "Choose another --port or --host, or serve without it: --no-http"
            )
        self.url = None
        self._start_at = self._clock() + self._delay_s
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)
        return f"died (exit code {code}); it is started again"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def terminate(self) -> None:
        """Tell the process to end; it is not started again."""
        self._start_at = None
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self, timeout_s: float) -> None:
        """End the process, in the end by force."""
        process, self._start_at = self._process, None
        if process is None:
            return
        for end, patience_s in ((process.terminate, timeout_s), (process.kill, 5.0)):
            if process.poll() is None:
                end()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(patience_s)
        self._close()

    def _read_url(self) -> bool:
        """Whether the line has come that says where it listens."""
        output = self.output
        if output is None or self.url is not None:
            return False
        with contextlib.suppress(BlockingIOError):
            self._line += os.read(output, _MAX_LINE)
        line, newline, _ = self._line.partition(b"\n")
        if not newline:
            return False
        url = str(json.loads(line)["url"])
        # Started again, it listens where its users know it.
        self.url, self._port = url, urlsplit(url).port
        return True

    def _close(self) -> None:
        process = self._process
        assert process is not None
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
