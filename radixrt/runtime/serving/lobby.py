"""Clients that arrive before the engine is ready: what they send waits, watchers are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from radixrt.errors import ProtocolError
from radixrt.protocol import Failed, Goodbye, Hello, Message, Phase, State, ToClient

MAX_HELD = 4096
"""Messages of one client that wait; a client that sends more before it is welcome is refused."""

Held = list[Message | ProtocolError]


class Lobby:
    """Holds what clients send until somebody can answer it.

    ``send`` reaches a client. Nothing is answered here but a refusal; ``release`` hands over
    everything in the order in which the clients came.
    """

    def __init__(self, send: Callable[[bytes, list[ToClient]], None], max_clients: int) -> None:
        self._send = send
        self._max_clients = max_clients
        self._held: dict[bytes, Held] = {}
        self._watchers: set[bytes] = set()
        self._state = State("starting")

    @property
    def client_ids(self) -> set[bytes]:
        """Who waits."""
        return set(self._held)

    def on_client(self, client_id: bytes, messages: Sequence[Message | ProtocolError]) -> None:
        """Hold what a client sent."""
        for message in messages:
            if isinstance(message, Goodbye):
                self.drop(client_id)
                continue
            held = self._held.get(client_id)
            if held is None and len(self._held) >= self._max_clients:
                text = f"{len(self._held)} clients wait for the runtime to start, the most it takes"
                self._send(client_id, [Failed(None, "overloaded", text, retryable=True)])
                continue
            held = self._held.setdefault(client_id, [])
            if len(held) >= MAX_HELD:
                self.drop(client_id)
                self._send(client_id, [Goodbye(f"{MAX_HELD} messages wait for the start")])
                continue
            held.append(message)
            if isinstance(message, Hello) and message.watch:
                self._watchers.add(client_id)
                self._send(client_id, [self._state])

    def tell(self, phase: Phase, detail: str) -> None:
        """Tell those who watch what the runtime does."""
        self._state = State(phase, detail)
        for client_id in list(self._watchers):
            self._send(client_id, [self._state])

    def drop(self, client_id: bytes) -> None:
        """Forget a client that is gone."""
        self._held.pop(client_id, None)
        self._watchers.discard(client_id)

    def release(self) -> Iterator[tuple[bytes, Held]]:
        """Yield every client with what it sent, and forget it."""
        while self._held:
            client_id = next(iter(self._held))
            yield client_id, self._held.pop(client_id)
        self._watchers.clear()
