"""What goes to clients, gathered while one event is handled."""

from __future__ import annotations

from collections.abc import Callable

from radixrt.protocol import ToClient


class Outbox:
    """Messages to clients, sent as one list a client at the end of an event."""

    def __init__(self, send: Callable[[bytes, list[ToClient]], None]) -> None:
        self._send = send
        self._messages: dict[bytes, list[ToClient]] = {}

    def put(self, client_id: bytes, message: ToClient) -> None:
        """Queue a message for the next ``flush``."""
        self._messages.setdefault(client_id, []).append(message)

    def discard(self, client_id: bytes) -> None:
        """Forget what is queued for a client."""
        self._messages.pop(client_id, None)

    def flush(self) -> None:
        """Send what is queued."""
        messages, self._messages = self._messages, {}
        for client_id, queued in messages.items():
            self._send(client_id, queued)
