"""What one HTTP request has under way in the runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from radixrt.gateway.errors import of_failure
from radixrt.protocol import Cancel, Chunk, Credit, Failed, Finished, ToRuntime

WINDOW = 256
"""Chunks of a call that may wait for a reader who is slow; the text of more is merged into the next
one by the runtime, so what a reader leaves unread costs no more than it."""

Event = tuple[int, Chunk | Finished]
"""The position of a call among those of its request, and what came of it."""


class Exchange:
    """The calls of a request: their chunks as they come, and exactly one outcome each."""

    def __init__(self, ids: Sequence[int], tell: Callable[[ToRuntime], None]) -> None:
        """``tell`` sends a message that has no answer."""
        self._ids = ids
        self._tell = tell
        self._events: list[Event] = []
        self._failure: Failed | None = None
        self._open = set(range(len(ids)))
        self._num_read = [0] * len(ids)
        self._waiter: asyncio.Future[None] | None = None

    def put(self, position: int, message: Chunk | Finished | Failed) -> None:
        """Take what came (called by the link)."""
        if isinstance(message, Failed):
            self._failure = self._failure or message
            self._open.discard(position)
        else:
            if isinstance(message, Finished):
                self._open.discard(position)
            self._events.append((position, message))
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    @property
    def is_over(self) -> bool:
        """Whether every call has its outcome."""
        return not self._open

    async def take(self) -> list[Event]:
        """Wait for something and return what has come since the last time, in order; empty when
        all calls have ended and everything was returned.

        Raises ``ApiError`` when a call failed; the others are cancelled then.
        """
        while not self._events and self._failure is None and self._open:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._failure is not None:
            self.cancel()
            raise of_failure(self._failure)
        events, self._events = self._events, []
        for position, message in events:
            if type(message) is Chunk:
                self._note_read(position)
        return events

    async def outcomes(self) -> list[Finished]:
        """Wait for the end of every call; their results in order. Raises ``ApiError``."""
        found: dict[int, Finished] = {}
        while events := await self.take():
            for position, message in events:
                if isinstance(message, Finished):
                    found[position] = message
        return [found[position] for position in range(len(self._ids))]

    def cancel(self) -> None:
        """End what still runs: nobody waits for it."""
        for position in self._open:
            self._tell(Cancel(self._ids[position]))

    def abandon(self) -> None:
        """The client has gone: end what runs, and let ``take`` raise."""
        self.cancel()
        self.put(next(iter(self._open), 0), Failed(None, "cancelled", "the client hung up"))

    def _note_read(self, position: int) -> None:
        self._num_read[position] += 1
        if self._num_read[position] >= WINDOW // 2 and position in self._open:
            self._tell(Credit(self._ids[position], self._num_read[position]))
            self._num_read[position] = 0
