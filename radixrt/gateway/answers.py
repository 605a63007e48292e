"""Bodies of answers: JSON at once, or events as they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import orjson
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from radixrt.gateway.errors import ApiError
from radixrt.gateway.exchange import Exchange

log = logging.getLogger(__name__)

T = TypeVar("T")


class JsonResponse(Response):
    """An object as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else orjson.dumps(content)


def error_response(error: ApiError) -> JsonResponse:
    """Return the answer that an error is."""
    return JsonResponse(error.json, error.status, headers=dict(error.headers))


class EventStream(Response):
    """Server-sent events, written by hand: one write for all that is there.

    ``events`` yields bytes of whole events. An error in the middle becomes an event of its own,
    made by ``on_error``. A client that hangs up ends the exchange.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        exchange: Exchange,
        on_error: Callable[[ApiError], bytes],
    ) -> None:
        self.background: BackgroundTask | None = None
        self.status_code = 200
        self._events = events
        self._exchange = exchange
        self._on_error = on_error
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = watch_hangup(receive, self._exchange)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for event in self._events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except ApiError as error:
                body = self._on_error(error)
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            watcher.cancel()
            self._exchange.cancel()


def watch_hangup(receive: Receive, exchange: Exchange) -> asyncio.Task[None]:
    """Return the task that ends an exchange when its client goes; cancel it in the end."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        exchange.abandon()

    return asyncio.get_running_loop().create_task(watch())


async def unless_hung_up(
    request: Request, exchange: Exchange, result: Callable[[], Awaitable[T]]
) -> T:
    """Wait for a result; a client that hangs up ends the exchange, and its waiting."""
    watcher = watch_hangup(request.receive, exchange)
    try:
        return await result()
    finally:
        watcher.cancel()
        exchange.cancel()


async def with_first(
    request: Request, exchange: Exchange, events: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """Return the events once the first of them is there: what fails before has a status of its own.

    Raises ``ApiError``.
    """
    watcher = watch_hangup(request.receive, exchange)
    try:
        first = await anext(events, b"")
    except BaseException:
        exchange.cancel()
        raise
    finally:
        watcher.cancel()
    return _chained(first, events)


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in rest:
        yield event


def data_event(payload: bytes) -> bytes:
    """Return a server-sent event."""
    return b"data: " + payload + b"\n\n"


DONE = data_event(b"[DONE]")


def error_events(error: ApiError) -> bytes:
    """Return the end of a stream that failed."""
    return data_event(error.json) + DONE
