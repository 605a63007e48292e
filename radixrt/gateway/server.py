"""The gateway process: settings from stdin, uvicorn until it is told to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn

from radixrt.errors import ConfigError
from radixrt.gateway.app import build_app
from radixrt.gateway.httptools import BoundedProtocol
from radixrt.gateway.link import RuntimeLink
from radixrt.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

BACKLOG = 2048
KEEP_ALIVE_S = 75

FAREWELL_S = 1.0
"""How long after the drain readers have for the end of their answers."""


def main() -> None:
    """Read the settings' line from stdin, serve, end with stdin or by SIGTERM."""
    # uvicorn drains when it gets the signal, and then raises it again for who handled it before.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    line = sys.stdin.buffer.readline()
    try:
        settings = GatewaySettings.from_json(line)
        _set_up_log(settings.log_format)
        listener = listen(settings.host, settings.port)
    except ConfigError as error:
        print(f"radixrt gateway: {error}", file=sys.stderr)
        sys.exit(2)
    serve(settings, listener)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ``ConfigError``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"host={host!r}, port={port}: cannot listen there: {error}") from None


def serve(settings: GatewaySettings, listener: socket.socket) -> None:
    """Serve until the process is told to stop."""
    link = RuntimeLink(settings.endpoint)
    server = _Server(
        uvicorn.Config(
            build_app(settings, link),
            http=partial(BoundedProtocol, max_connections=settings.max_connections),  # type: ignore[arg-type]
            loop="uvloop",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(settings.drain_s + FAREWELL_S),
        ),
        url_of(listener),
        end_answers=lambda: link.fail_all("the server is shutting down"),
        drain_s=settings.drain_s,
    )
    server.run(sockets=[listener])


def url_of(listener: socket.socket) -> str:
    """Return the address of a listening socket as people type it."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Says where it listens once it does, and ends when its parent has.

    An answer that outlasts the drain is ended by ``end_answers``, not cut off.
    """

    def __init__(
        self, config: uvicorn.Config, url: str, *, end_answers: Callable[[], None], drain_s: float
    ) -> None:
        super().__init__(config)
        self._url = url
        self._end_answers = end_answers
        self._drain_s = drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.stdout.write(json.dumps({"url": self._url}) + "\n")
        sys.stdout.flush()
        loop = asyncio.get_running_loop()
        watcher = threading.Thread(target=self._await_parent, args=(loop,), daemon=True)
        watcher.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        end = asyncio.get_running_loop().call_later(self._drain_s, self._end_answers)
        try:
            await super().shutdown(sockets)
        finally:
            end.cancel()

    def _await_parent(self, loop: asyncio.AbstractEventLoop) -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        log.info("stdin was closed: the parent has ended")
        loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self.should_exit = True


def _set_up_log(log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if log_format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


_TEXT = "%(asctime)s gateway %(levelname)s %(message)s"


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": self.formatTime(record),
            "event": "gateway",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)
