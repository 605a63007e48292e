"""Responses that may be gone on with, as long as there is room for them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import orjson

from radixrt.gateway.errors import ApiError

MAX_RESPONSES = 4096
MAX_BYTES = 64 * 1024 * 1024
"""What is kept in memory at most; the responses used least recently go first."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A response, and the items of the conversation up to its end."""

    response: dict[str, Any]
    items: list[dict[str, Any]]


class ResponseStore:
    """Keeps responses for those who got them; nobody else finds them. Lost with the process."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._num_bytes = 0

    def put(self, owner: str, response_id: str, stored: Stored) -> None:
        """Keep a response of ``owner``."""
        encoded = orjson.dumps([stored.response, stored.items])
        self._kept[owner, response_id] = encoded
        self._num_bytes += len(encoded)
        while len(self._kept) > self._max_responses or self._num_bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._num_bytes -= len(dropped)

    def get(self, owner: str, response_id: str) -> Stored:
        """Return a response of ``owner``. Raises ``ApiError`` 404."""
        encoded = self._kept.get((owner, response_id))
        if encoded is None:
            raise _not_found(response_id)
        self._kept.move_to_end((owner, response_id))
        return Stored(*orjson.loads(encoded))

    def delete(self, owner: str, response_id: str) -> None:
        """Forget a response of ``owner``. Raises ``ApiError`` 404."""
        encoded = self._kept.pop((owner, response_id), None)
        if encoded is None:
            raise _not_found(response_id)
        self._num_bytes -= len(encoded)


def _not_found(response_id: str) -> ApiError:
    return ApiError(
        404,
        f"there is no response {response_id[:100]!r}: it was not stored, or not kept until now; "
        "send the conversation's items instead",
        "previous_response_id",
        "previous_response_not_found",
    )
