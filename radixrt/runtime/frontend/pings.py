"""Pings on their way to the engine's loop and back: those of clients, and one of our own a second.

A stuck loop answers none, whatever the sockets say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from radixrt.protocol import Pong
from radixrt.runtime.frontend.engine_link import EngineLink
from radixrt.runtime.frontend.outbox import Outbox
from radixrt.runtime.histogram import Histogram
from radixrt.runtime.wire import EnginePing, EnginePong

PROBE_INTERVAL_S = 1.0
"""How often the loop is asked how late it is when no client asks."""


class Pings:
    """Answers pings with what the engine's loop says, or for it while it is away.

    ``lag`` gets how long each waited (seconds); at most ``most`` clients' pings are remembered.
    """

    def __init__(
        self,
        engine: EngineLink,
        outbox: Outbox,
        lag: Histogram,
        *,
        ids: Iterator[int],
        clock: Callable[[], float],
        most: int,
    ) -> None:
        self._engine = engine
        self._outbox = outbox
        self._lag = lag
        self._ids = ids
        self._clock = clock
        self._most = most
        self._waiting: dict[int, tuple[bytes, int]] = {}
        self._down_since = 0.0
        self._next_probe = 0.0

    def ping(self, client_id: bytes, seq: int) -> None:
        """A client asks."""
        if not self._engine.is_up:
            lag_ms = 1000 * (self._clock() - self._down_since)
            self._outbox.put(client_id, Pong(seq, lag_ms))
            return
        number = next(self._ids)
        self._waiting[number] = (client_id, seq)
        if len(self._waiting) > self._most:
            self._waiting.pop(next(iter(self._waiting)))
        self._engine.post(EnginePing(number, time.monotonic()))

    def probe(self) -> None:
        """Ask for ourselves, when it is time."""
        now = self._clock()
        if now >= self._next_probe and self._engine.is_up:
            self._next_probe = now + PROBE_INTERVAL_S
            self._engine.post(EnginePing(next(self._ids), time.monotonic()))

    def pong(self, pong: EnginePong) -> None:
        """The loop answers."""
        self._lag.observe(pong.lag_ms / 1000)
        if (waiting := self._waiting.pop(pong.seq, None)) is not None:
            client_id, seq = waiting
            self._outbox.put(client_id, Pong(seq, pong.lag_ms))

    def went_down(self) -> None:
        """The engine is gone: who waits is answered, since we are alive."""
        self._down_since = self._clock()
        for client_id, seq in self._waiting.values():
            self._outbox.put(client_id, Pong(seq, 0.0))
        self._waiting.clear()
