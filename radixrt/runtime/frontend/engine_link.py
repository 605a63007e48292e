"""The frontend's way to the engine: keeps what is asked while the engine is away."""

from __future__ import annotations

from collections.abc import Callable

from radixrt.runtime.wire import (
    Abort,
    Question,
    Release,
    Run,
    Score,
    ToEngine,
)


class EngineLink:
    """Gathers messages for the engine and sends them as one batch.

    While the engine is down, calls wait for the next one; releases are moot, since a new engine has
    no leases.
    """

    def __init__(self, send: Callable[[list[ToEngine]], None]) -> None:
        self._send = send
        self._outbox: list[ToEngine] = []
        self._released: list[int] = []
        self._left: list[int] = []
        self._waiting: dict[int, ToEngine] = {}
        self.is_up = True

    def post(self, message: ToEngine) -> None:
        """Queue a message for the next ``flush``."""
        if self.is_up:
            self._outbox.append(message)
        elif isinstance(message, Run | Score | Question):
            self._waiting[message.id] = message
        elif isinstance(message, Abort):
            self._waiting.pop(message.id, None)

    def release(self, uid: int, *, ended: bool = True) -> None:
        """Queue the release of a branch's lease; ``ended``: nobody will continue the branch."""
        if self.is_up:
            (self._released if ended else self._left).append(uid)

    def flush(self) -> None:
        """Send what is queued, releases last: they follow the aborts of their calls."""
        if self._released:
            self._outbox.append(Release(tuple(self._released)))
            self._released.clear()
        if self._left:
            self._outbox.append(Release(tuple(self._left), ended=False))
            self._left.clear()
        if self._outbox:
            batch, self._outbox = self._outbox, []
            self._send(batch)

    def went_down(self) -> None:
        """The engine is gone with all it was told."""
        self.is_up = False
        self._outbox.clear()
        self._released.clear()
        self._left.clear()

    def came_up(self) -> None:
        """A new engine is ready: it gets the calls that waited for it."""
        self.is_up = True
        self._outbox.extend(self._waiting.values())
        self._waiting.clear()
