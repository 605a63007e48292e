"""Bodies of answers: JSON at once, or events as they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import orjson
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from radixrt.gateway.errors import ApiError
from radixrt.gateway.exchange import Event, Exchange

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


class EventWriter(Protocol):
    """Makes the events of a stream."""

    def write(self, events: list[Event]) -> bytes:
        """Return the server-sent events for what has come."""

    def close(self) -> bytes:
        """Return the end of the stream."""

    def error(self, error: ApiError) -> bytes:
        """Return the end of a stream that failed."""


class EventStream(Response):
    """Server-sent events, written by hand: one write for all that is there.

    An error in the middle becomes an event of its own. A client that hangs up ends the exchange.
    """

    media_type = "text/event-stream"

    def __init__(
        self, first: bytes, writer: EventWriter, exchange: Exchange, watcher: asyncio.Task[None]
    ) -> None:
        self.background: BackgroundTask | None = None
        self.status_code = 200
        self._first = first
        self._writer = writer
        self._exchange = exchange
        self._watcher = watcher
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        take, write = self._exchange.take, self._writer.write
        # Only an answer's start concerns those in between; its body goes straight to the server.
        direct: Send = scope["state"].get("send", send)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            body = self._first
            try:
                while body:
                    await direct({"type": "http.response.body", "body": body, "more_body": True})
                    events = await take()
                    body = write(events) if events else b""
                end = self._writer.close()
            except ApiError as error:
                end = self._writer.error(error)
            await direct({"type": "http.response.body", "body": end})
        finally:
            self._watcher.cancel()
            self._exchange.cancel()


async def event_stream(request: Request, exchange: Exchange, writer: EventWriter) -> EventStream:
    """Return the answer once its first events are there: what fails before has a status of its own.

    Raises ``ApiError``.
    """
    watcher = watch_hangup(request.receive, exchange)
    try:
        first = writer.write(await exchange.take())
    except BaseException:
        watcher.cancel()
        exchange.cancel()
        raise
    return EventStream(first, writer, exchange, watcher)


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


def data_event(payload: bytes) -> bytes:
    """Return a server-sent event."""
    return b"data: " + payload + b"\n\n"


DONE = data_event(b"[DONE]")


def error_events(error: ApiError) -> bytes:
    """Return the end of a stream that failed."""
    return data_event(error.json) + DONE
