"""Request bodies: read within a limit and a time, decoded once into a checked structure."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, TypeVar

import msgspec
import orjson
from starlette.requests import ClientDisconnect, Request

from radixrt.gateway.errors import ApiError, invalid

log = logging.getLogger(__name__)

BODY_TIMEOUT_S = 60.0
"""Longest time that a body may take to arrive."""

MAX_NAMES_LOGGED = 256
"""Unknown fields that are remembered as told about."""

_BINDING = ("guided_", "structured_")
"""Beginnings of fields that bind a text: to ignore one would break what its caller relies on."""

T = TypeVar("T", bound=msgspec.Struct)

_AT = re.compile(r" - at `\$\.?(.*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")


class Bodies:
    """Reads and decodes the bodies of requests."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._told: set[str] = set()

    async def read(self, request: Request, kind: type[T]) -> T:
        """Return the body as a ``kind``. Null is the same as leaving a field out.

        Fields that ``kind`` does not have are ignored, with a log line the first time. Raises
        ``ApiError``.
        """
        data = await self.read_object(request)
        fields = kind.__struct_fields__
        unknown = data.keys() - set(fields)
        if unknown:
            self._on_unknown(request.url.path, unknown)
        return decode(data, kind)

    async def read_object(self, request: Request) -> dict[str, Any]:
        """Return the body, an object, without the fields that are null. Raises ``ApiError``."""
        media = request.headers.get("content-type", "application/json").split(";")[0].strip()
        if not (media == "application/json" or media.endswith("+json")):
            text = f"content-type {media[:60]}: send application/json"
            raise ApiError(400, text, code="unsupported_media_type")
        return parse(await self._receive(request))

    async def _receive(self, request: Request) -> bytes:
        length = request.headers.get("content-length")
        if length is not None and length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large(int(length))
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self._max_bytes:
                        raise self._too_large(size)
                    chunks.append(chunk)
        except TimeoutError:
            text = f"the body did not arrive within {BODY_TIMEOUT_S:g} s"
            raise ApiError(408, text, code="timeout", headers={"connection": "close"}) from None
        except ClientDisconnect:
            raise ApiError(400, "the client hung up", code="client_closed") from None
        return b"".join(chunks)

    def _too_large(self, size: int) -> ApiError:
        return ApiError(
            413,
            f"the body has {size} bytes or more; at most {self._max_bytes} are accepted",
            code="request_too_large",
            headers={"connection": "close"},
        )

    def _on_unknown(self, path: str, names: set[str]) -> None:
        for name in sorted(names):
            if name.startswith(_BINDING):
                raise invalid(name, "this constraint is not known; leave it out", "unsupported")
            if name not in self._told and len(self._told) < MAX_NAMES_LOGGED:
                self._told.add(name)
                log.warning("%s: the field %r is not known and was ignored", path, name[:80])


def parse(body: bytes) -> dict[str, Any]:
    """Return the object in a body, without the fields that are null. Raises ``ApiError``."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    return {name: value for name, value in data.items() if value is not None}


def decode(data: dict[str, Any], kind: type[T]) -> T:
    """Return a ``kind`` with the fields of ``data``. Raises ``ApiError`` that names the field."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        at, missing = _AT.search(text), _MISSING.search(text)
        path = at.group(1) if at is not None else ""
        reason = _AT.sub("", text).replace("Object missing", "missing")
        if missing is not None:
            path = f"{path}.{missing.group(1)}".lstrip(".")
            reason = "this field is required"
        param = path or None
        raise ApiError(400, f"{path}: {reason}".lstrip(": "), param, "invalid_type") from None
    except (RecursionError, OverflowError) as error:
        raise ApiError(400, f"the body cannot be used: {error}", code="invalid_value") from None
