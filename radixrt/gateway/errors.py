"""Errors as HTTP answers, in OpenAI's shape.

``{"error": {"message", "type", "param", "code"}}`` with the status that the official clients turn
into their exceptions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from radixrt.protocol import Failed

RETRY_AFTER_S = 1
"""Seconds after which a refused request may be tried again, where nothing better is known."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}

_STATUS_OF = {
    "bad_request": 400,
    "branch_failed": 400,
    "constraint": 400,
    "unsupported": 400,
    "value_refused": 400,
    "too_long": 400,
    "overloaded": 429,
    "deadline": 504,
    "engine_fault": 503,
    "cancelled": 503,
}
"""The runtime's word for a failure → status."""

_CODES = {"too_long": "context_length_exceeded", "bad_request": "invalid_value"}

_NAMES = {
    "top_logprobs_num": "top_logprobs",
    "choices": "response_format",
    "token_ids": "prompt",
    "chat": "messages",
    "json": "response_format",
}
"""The protocol's name of an argument → that of the field it came from."""

_ARGUMENT = re.compile(r"^([a-z_]+)(?:\[|\.|=|: )")


@dataclass(eq=False)
class ApiError(Exception):
    """A request that is answered with an error. ``param`` names the field it is about."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)
        if self.status in (429, 503):
            self.headers.setdefault("retry-after", str(RETRY_AFTER_S))

    @property
    def body(self) -> dict[str, Any]:
        """The object that is sent."""
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, "server_error"),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    @property
    def json(self) -> bytes:
        """Its text."""
        return orjson.dumps(self.body)


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """Return the error for a field of a request that cannot be used."""
    return ApiError(400, f"{param}: {message}", param, code)


def unavailable(message: str) -> ApiError:
    """Return the error for now: the runtime cannot take the request, but will."""
    return ApiError(503, message, None, "service_unavailable")


def of_failure(failed: Failed) -> ApiError:
    """Return the error that a call's failure is for the client of the HTTP server."""
    status = _STATUS_OF.get(failed.code, 500)
    argument = _ARGUMENT.match(failed.message)
    name = argument.group(1) if argument is not None and status == 400 else None
    return ApiError(
        status,
        failed.message,
        None if name is None else _NAMES.get(name, name),
        _CODES.get(failed.code, failed.code),
    )
