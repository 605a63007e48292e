"""What the gateway process is started with: one JSON object on its stdin."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

import msgspec
import orjson

from radixrt.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A client's key. ``name`` is what logs call it; the key itself is never written anywhere."""

    name: str
    key: str

    tenant: str = ""
    """Cache namespace of its requests: prefixes of another tenant are neither found nor seen. Empty
    is the one that everybody without a tenant shares."""

    max_concurrent: int = 0
    """Unanswered requests at a time; 0 sets no bound but the gateway's own."""

    requests_per_minute: int = 0
    """Requests in any minute; 0 sets no bound."""

    admin: bool = False
    """Opens the admin routes and the page. An admin key is for nothing else but also works there
    where every key does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Options of the gateway. Frozen; ``checked`` says what cannot work."""

    endpoint: str
    """Where the runtime is (``ipc://…`` or a loopback ``tcp://…``)."""

    host: str = "127.0.0.1"
    """Address to listen at."""

    port: int = 0
    """Port to listen at; 0 takes a free one."""

    model_names: tuple[str, ...] = ()
    """Names under which the model is served, the first one in answers; empty is its own name."""

    keys: tuple[ApiKey, ...] = ()
    """Keys that are accepted; without any, everybody who can connect is served."""

    insecure: bool = False
    """Listen without keys where other machines can connect."""

    allowed_hosts: tuple[str, ...] = ()
    """Names by which a loopback gateway without keys may be called beside 127.0.0.1 and localhost
    (the ``Host`` header of a proxy before it)."""

    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call from a browser; ``*`` for all. Empty: none."""

    max_body_bytes: int = 8 * 1024 * 1024
    """Longest request body; longer ones are refused with 413."""

    max_queue: int = 2048
    """Unanswered generations of all clients; more are refused with 429."""

    max_connections: int = 4096
    """Open connections; more are answered with 503 at once."""

    request_timeout_s: float = 3600.0
    """Longest time for a request from its arrival to its end."""

    drain_s: float = 10.0
    """How long running requests may finish after SIGTERM."""

    log_format: Literal["text", "json"] = "text"
    """Form of log lines on stderr."""

    access_log: bool = False
    """A log line for every request, without its contents."""

    redact: bool = False
    """Never show decoded prompts on the page."""

    open_metrics: bool = False
    """Serve ``/metrics`` without a key also where keys are set."""

    title: str = "radixrt"
    """Name of the service on the page and in ``/openapi.json``."""

    def checked(self) -> GatewaySettings:
        """Return these settings; ``ConfigError`` for what cannot or must not be."""
        if not self.endpoint.startswith(("ipc://", "tcp://")):
            raise ConfigError(f"endpoint={self.endpoint!r}: use ipc://PATH or tcp://HOST:PORT")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port}: use 0 (any) to 65535")
        if not self.keys and not self.insecure and not is_loopback(self.host):
            raise ConfigError(
                f"host={self.host!r} can be reached from other machines: give API keys, listen at "
                "127.0.0.1, or say --insecure"
            )
        if self.keys and all(key.admin for key in self.keys):
            raise ConfigError("keys: all are admin keys; give clients one that is not")
        self._check_keys()
        for name in ("max_body_bytes", "max_queue", "max_connections", "request_timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: must be above 0")
        if self.drain_s < 0:
            raise ConfigError(f"drain_s={self.drain_s}: give 0 or more seconds")
        for model_name in self.model_names:
            if not model_name.strip():
                raise ConfigError("model_names: a name is empty")
        return self

    def _check_keys(self) -> None:
        seen: set[str] = set()
        for key in self.keys:
            if len(key.key) < MIN_KEY_LEN or not key.key.isascii() or " " in key.key:
                raise ConfigError(
                    f"the key {key.name!r} has {len(key.key)} characters: use at least "
                    f"{MIN_KEY_LEN} of ASCII without blanks (`openssl rand -hex 32` makes one)"
                )
            if key.key in seen:
                raise ConfigError(f"the key {key.name!r} is given twice")
            if not _TENANT.fullmatch(key.tenant):
                raise ConfigError(
                    f"tenant={key.tenant!r} of the key {key.name!r}: use letters, digits, '_', '-' "
                    "and '.', at most 64"
                )
            if key.max_concurrent < 0 or key.requests_per_minute < 0:
                raise ConfigError(f"limits of the key {key.name!r}: use 0 (none) or more")
            seen.add(key.key)

    def to_json(self) -> bytes:
        """Return the object that ``from_json`` reads."""
        return orjson.dumps(self)

    @staticmethod
    def from_json(text: bytes) -> GatewaySettings:
        """Return checked settings. Raises ``ConfigError``, which never quotes a key."""
        try:
            data = orjson.loads(text)
            settings = msgspec.convert(data, GatewaySettings)
        except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
            raise ConfigError(f"the gateway's settings are not valid: {error}") from None
        unknown = sorted(data.keys() - GatewaySettings.__dataclass_fields__.keys())
        if unknown:
            raise ConfigError(f"the gateway's settings: unknown {', '.join(unknown)}")
        return settings.checked()


_TENANT = re.compile(r"[\w.-]{0,64}", re.ASCII)

MIN_KEY_LEN = 16
"""Shorter keys can be guessed."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
