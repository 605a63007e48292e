"""Requests to an endpoint: repeated when that can help, and every failure typed."""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx
import orjson

from radixrt.errors import (
    BadRequest,
    CallFailed,
    EngineFault,
    Overloaded,
    PromptTooLong,
    RuntimeUnavailable,
    Unauthorized,
    Unsupported,
)
from radixrt.lang.openai.settings import Settings

MAX_RETRY_AFTER_S = 120.0
"""An endpoint that asks to wait longer has refused."""

_FIRST_PAUSE_S = 0.5
_REPEATED = frozenset({408, 429, 500, 502, 503, 504})
_TOO_LONG = ("context_length", "maximum context", "context length", "too long", "too many tokens")


class Http:
    """One endpoint's connections. Used from one event loop.

    ``num_requests`` and ``num_retries`` count what was sent and what of it was sent again.
    """

    def __init__(self, settings: Settings) -> None:
        headers = {"user-agent": "radixrt", **dict(settings.headers)}
        if settings.api_key:
            headers["authorization"] = f"Bearer {settings.api_key}"
        limit = settings.max_concurrency
        self.num_requests = 0
        self.num_retries = 0
        self._max_retries = settings.max_retries
        self._client = httpx.AsyncClient(
            headers=headers,
            # Reading the machine's certificates takes longer than many a request.
            verify=settings.base_url.startswith("https"),
            # A call's own deadline bounds reading; a connection is there soon or not at all.
            timeout=httpx.Timeout(settings.timeout_s, connect=min(10.0, settings.timeout_s)),
            limits=httpx.Limits(max_connections=limit + 4, max_keepalive_connections=limit + 4),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, url: str) -> Any:
        """Return the JSON of a GET that is not repeated. ``RuntimeUnavailable`` without answer."""
        self.num_requests += 1
        try:
            response = await self._client.get(url)
        except httpx.HTTPError as error:
            raise RuntimeUnavailable(f"nobody answers at {url}: {_said(error)}") from error
        if response.is_error:
            raise failure_of(response.status_code, response.content, response.headers, url)
        return _json(response.content, url)

    async def post(self, url: str, body: dict[str, Any]) -> Any:
        """Return the JSON that answers ``body``. Raises ``CallFailed`` of the fitting kind."""
        return _json(await self.post_raw(url, body), url)

    async def post_raw(self, url: str, body: dict[str, Any]) -> bytes:
        """``post``, for an answer that need not be JSON."""
        for attempt in range(self._max_retries + 1):
            try:
                response = await self._client.send(self._request(url, body))
                error = (
                    failure_of(response.status_code, response.content, response.headers, url)
                    if not response.is_success
                    else None
                )
            except httpx.HTTPError as broken:
                response, error = None, _broken(broken, url)
            if error is None and response is not None:
                return response.content
            assert error is not None
            await self._pause_or_raise(error, attempt, response)
        raise AssertionError("the last attempt raises")

    async def stream(self, url: str, body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Yield the JSON events that answer ``body``, up to ``[DONE]``.

        Only a request that has brought nothing yet is repeated. Closing the iterator closes the
        connection, which tells the endpoint to stop.
        """
        for attempt in range(self._max_retries + 1):
            response: httpx.Response | None = None
            has_begun = False
            try:
                response = await self._client.send(self._request(url, body), stream=True)
                if response.is_success:
                    async for event in _events(response, url):
                        has_begun = True
                        yield event
                    return
                content = await response.aread()
                error = failure_of(response.status_code, content, response.headers, url)
            except httpx.HTTPError as broken:
                error = _broken(broken, url)
                if has_begun:
                    raise error from broken
            finally:
                if response is not None:
                    await response.aclose()
            await self._pause_or_raise(error, attempt, response)

    def _request(self, url: str, body: dict[str, Any]) -> httpx.Request:
        self.num_requests += 1
        headers = {"content-type": "application/json"}
        return self._client.build_request("POST", url, content=orjson.dumps(body), headers=headers)

    async def _pause_or_raise(
        self, error: CallFailed, attempt: int, response: httpx.Response | None
    ) -> None:
        """Wait until the request may be repeated, or raise why it may not."""
        pause = _FIRST_PAUSE_S * 2**attempt * random.uniform(0.75, 1.0)
        asked = None if response is None else _retry_after(response.headers)
        if asked is not None:
            pause = asked
        is_hopeless = response is not None and response.status_code not in _REPEATED
        if (
            is_hopeless
            or not error.retryable
            or attempt == self._max_retries
            or pause > MAX_RETRY_AFTER_S
        ):
            raise error
        self.num_retries += 1
        await asyncio.sleep(pause)


async def _events(response: httpx.Response, url: str) -> AsyncIterator[Any]:
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        event = _json(data.encode(), url)
        if isinstance(event, dict) and event.get("error"):
            raise failure_of(_status(event["error"]), data.encode(), httpx.Headers(), url)
        yield event


def failure_of(status: int, body: bytes, headers: httpx.Headers, url: str) -> CallFailed:
    """Return the error of an HTTP answer, with the endpoint's own words."""
    code, message = _told(body)
    said = f"{url} answers {status}: {message}"
    if status in (401, 403):
        way_out = "pass api_key=, or set OPENAI_API_KEY"
        return Unauthorized(f"{said}; {way_out}")
    if status in (400, 413, 422):
        text = f"{code} {message}".lower()
        if any(mark in text for mark in _TOO_LONG):
            return PromptTooLong(said)
        return BadRequest(said)
    if status in (404, 405, 501):
        return Unsupported(
            f"{said}; check base_url= (most end with /v1), model=, and mode= ('chat' where there "
            "are no completions)"
        )
    if status == 429:
        # A quota that is used up does not come back by waiting.
        return Overloaded(said, retryable=code != "insufficient_quota")
    if status == 503:
        return Overloaded(said, retryable=True)
    return EngineFault(said, retryable=status in _REPEATED)


def _told(body: bytes) -> tuple[str, str]:
    """The code and the message of an error's body, whatever its form."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", body[:300].decode(errors="replace") or "no reason"
    error = told.get("error", told) if isinstance(told, dict) else told
    if not isinstance(error, dict):
        return "", str(error)[:300]
    message = error.get("message") or error.get("detail") or str(error)
    return str(error.get("code") or error.get("type") or ""), str(message)[:500]


def _status(error: Any) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _retry_after(headers: httpx.Headers) -> float | None:
    """How many seconds an answer asks to wait; None when it does not say."""
    asked = headers.get("retry-after")
    if asked is None:
        return None
    try:
        seconds = float(asked)
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(asked).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _broken(error: httpx.HTTPError, url: str) -> CallFailed:
    is_lasting = isinstance(error, httpx.UnsupportedProtocol | httpx.TooManyRedirects)
    return EngineFault(f"no answer from {url}: {_said(error)}", retryable=not is_lasting)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _json(content: bytes, url: str) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        shown = content[:100].decode(errors="replace")
        raise EngineFault(f"{url} answers {shown!r}, which is not JSON: {error}") from None
