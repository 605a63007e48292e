"""What every request passes before a route sees it: its id, its sender, its limits."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from radixrt.gateway.access import Client, KeyRing
from radixrt.gateway.errors import ApiError
from radixrt.gateway.settings import GatewaySettings, is_loopback

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ready", "/"})
"""Paths that need no key: they tell nothing of requests."""

ADMIN_PREFIXES = ("/admin/", "/page/", "/flush_cache")
"""Paths that need an admin key where keys are set."""

_USABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Gate:
    """An ASGI application around another one.

    ``scope["state"]`` gets ``request_id``, ``client`` (who sent it), ``started`` (monotonic
    seconds) and ``send``, the way out past everything in between. Every answer has the id in
    ``x-request-id``.
    """

    def __init__(
        self, app: ASGIApp, settings: GatewaySettings, answers: Counter[tuple[str, int]]
    ) -> None:
        """``answers`` counts answers by the name of the key and the status."""
        self._app = app
        self._settings = settings
        self._keys = KeyRing(settings.keys)
        self._open = OPEN_PATHS | ({"/metrics"} if settings.open_metrics else frozenset())
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _USABLE_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"], state["started"] = request_id, time.monotonic()
        state["send"] = send
        extra = [(b"x-request-id", request_id.encode())]
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        entered: Client | None = None
        try:
            entered = self._admit(scope, headers, state)
            await self._app(scope, receive, send_with_id)
        except ApiError as error:
            await send_error(error, send_with_id)
        finally:
            if entered is not None:
                entered.leave()
            client = state.get("client")
            # 0: the client went before there was an answer.
            self._answers["-" if client is None else client.name, status] += 1
            if self._settings.access_log:
                self._log(scope, state, status)

    def _admit(self, scope: Scope, headers: Headers, state: dict[str, Any]) -> Client | None:
        """Find out who sends the request; return whose limits it counts for. Raises ``ApiError``"""
        path = scope["path"]
        self._check_origin(scope, headers)
        if path in self._open or scope["method"] == "OPTIONS":
            state["client"] = None
            return None
        client = self._keys.client_of(headers.get("authorization"), headers.get("x-api-key"))
        state["client"] = client
        if path.startswith(ADMIN_PREFIXES) and not client.key.admin:
            raise ApiError(403, "this needs an admin key", code="admin_key_required")
        if scope["method"] == "GET":
            return None
        client.enter()
        return client

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Keep pages of other sites from calling through the browser of somebody who may."""
        settings = self._settings
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and "*" not in settings.cors_origins:
            is_own = urlsplit(origin).netloc == host
            if not is_own and origin not in settings.cors_origins:
                raise ApiError(403, "this origin is not allowed", code="origin_not_allowed")
        if settings.keys or settings.insecure or not is_loopback(settings.host):
            return
        # A name that somebody else lets point here is no loopback, though the connection is.
        name = urlsplit(f"//{host}").hostname or ""
        if name and not is_loopback(name) and name not in settings.allowed_hosts:
            raise ApiError(
                403,
                f"host {name[:80]!r} is not allowed without keys; call 127.0.0.1 or localhost, "
                "or allow the name with --allowed-host",
                code="host_not_allowed",
            )

    def _log(self, scope: Scope, state: dict[str, Any], status: int) -> None:
        client = state.get("client")
        log.info(
            "%s %s %d %.0f ms key=%s id=%s",
            scope["method"],
            scope["path"],
            status,
            1000 * (time.monotonic() - state["started"]),
            client.name if client is not None else "-",
            state["request_id"],
        )


async def send_error(error: ApiError, send: Send) -> None:
    """Answer with an error."""
    body = error.json
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in error.headers.items()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
