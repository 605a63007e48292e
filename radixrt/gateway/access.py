"""Who may call: keys, tenants and limits."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

import orjson

from radixrt.gateway.errors import ApiError
from radixrt.gateway.settings import ApiKey

WINDOW_S = 60.0
"""The minute of ``requests_per_minute``."""

PUBLIC = ApiKey(name="anyone", key="", admin=True)
"""Who calls where no keys are set."""


class Client:
    """Somebody with a key, and what of its limits is used up."""

    def __init__(self, key: ApiKey, clock: Callable[[], float] = time.monotonic) -> None:
        self.key = key
        self._clock = clock
        self._arrivals: deque[float] = deque()
        self._num_open = 0

    @property
    def name(self) -> str:
        """What logs and metrics call it."""
        return self.key.name

    def tenant(self, salt: str = "") -> str:
        """Return the cache namespace of a request with that ``cache_salt``: within the tenant's own
        whatever the salt is."""
        if not salt:
            return self.key.tenant
        return orjson.dumps([self.key.tenant, salt]).decode()

    def enter(self) -> None:
        """A request begins; ``leave`` when it ends. Raises ``ApiError`` 429, and then it has not
        begun."""
        limit = self.key.max_concurrent
        if limit and self._num_open >= limit:
            raise ApiError(
                429,
                f"{self._num_open} requests of this key are unanswered, the most it may have",
                code="concurrency_limit_exceeded",
            )
        self._note_arrival()
        self._num_open += 1

    def leave(self) -> None:
        """A request that has begun is over."""
        self._num_open -= 1

    def _note_arrival(self) -> None:
        limit = self.key.requests_per_minute
        if not limit:
            return
        now = self._clock()
        while self._arrivals and self._arrivals[0] <= now - WINDOW_S:
            self._arrivals.popleft()
        if len(self._arrivals) >= limit:
            wait_s = max(1, math.ceil(self._arrivals[0] + WINDOW_S - now))
            raise ApiError(
                429,
                f"this key has sent {limit} requests within a minute, the most it may send; "
                f"try again in {wait_s} s",
                code="rate_limit_exceeded",
                headers={"retry-after": str(wait_s)},
            )
        self._arrivals.append(now)


class KeyRing:
    """Finds the client of a key in a time that does not tell how much of it was right."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._clients = [(_digest(key.key), Client(key)) for key in keys]
        self._public = None if keys else Client(PUBLIC)

    def client_of(self, authorization: str | None, api_key: str | None) -> Client:
        """Return who sent ``Authorization: Bearer KEY`` or ``x-api-key: KEY``. Raises ``ApiError``
        401."""
        if self._public is not None:
            return self._public
        scheme, _, given = (authorization or "").partition(" ")
        if not authorization or scheme.lower() != "bearer":
            given = api_key or ""
        given = given.strip()
        if not given:
            raise _unauthorized("send the header Authorization: Bearer KEY")
        digest = _digest(given)
        found: Client | None = None
        for known, client in self._clients:  # all of them, whichever is right
            if hmac.compare_digest(known, digest):
                found = client
        if found is None:
            raise _unauthorized("the API key is not valid")
        return found


def _unauthorized(message: str) -> ApiError:
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, message, code="invalid_api_key", headers=headers)


def _digest(key: str) -> bytes:
    # Digests have one length, so that the comparison does not tell that of a key.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
