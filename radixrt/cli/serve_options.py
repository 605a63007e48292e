"""What ``radixrt serve`` is started with beside the options of the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from radixrt.config import parse_size
from radixrt.errors import ConfigError
from radixrt.gateway.settings import ApiKey, GatewaySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Options of HTTP, of keys and of the server process."""

    http: bool = True
    """Serve the OpenAI-compatible HTTP interface too; with ``--no-http`` ZeroMQ alone."""

    host: str = "127.0.0.1"
    """Address that HTTP listens at; any but loopback needs keys or ``--insecure``."""

    port: int = 8000
    """Port that HTTP listens at; 0 takes a free one."""

    model_name: tuple[str, ...] = ()
    """Name under which HTTP serves the model, the first one in answers; several are aliases
    (repeat the flag, separate by commas in the variable). Without it the model's own name."""

    api_key_file: Path | None = None
    """File with the keys of clients: a line ``NAME KEY`` or ``KEY`` each, or with the ending
    ``.toml`` tables ``[[keys]]`` with name, key, tenant, max_concurrent and requests_per_minute.
    The variable ``RADIXRT_API_KEY`` holds one key itself."""

    admin_key_file: Path | None = None
    """File with the keys, in the same form, that open the page and the admin routes. The variable
    ``RADIXRT_ADMIN_KEY`` holds one key itself."""

    insecure: bool = False
    """Let anybody in who can reach an address that is not loopback, without keys."""

    cors_origin: tuple[str, ...] = ()
    """Origin whose pages may call HTTP from a browser, or ``*``; repeatable."""

    allowed_host: tuple[str, ...] = ()
    """``Host`` by which a proxy calls HTTP on loopback without keys; repeatable."""

    max_body: str = "8MiB"
    """Longest body of an HTTP request."""

    max_connections: int = 4096
    """Open HTTP connections; more are refused."""

    http_max_queue: int = 2048
    """Unanswered generations over HTTP; more are refused with 429."""

    request_timeout_s: float = 3600.0
    """Longest time of an HTTP request from its arrival to its end."""

    access_log: bool = False
    """A log line for every HTTP request, without its contents."""

    redact: bool = False
    """Never show decoded prompts on the page."""

    open_metrics: bool = False
    """Serve ``/metrics`` without a key also where keys are set."""

    curve_secret: Path | None = None
    """Certificate with the secret key of a ``tcp://`` endpoint (``radixrt keygen`` makes one)."""

    allow: Path | None = None
    """File with the public keys of the clients of a ``tcp://`` endpoint, one a line."""

    ready_file: Path | None = None
    """File that gets the endpoint and, on a second line, the URL of HTTP when both serve; it goes
    away with the server."""

    def check(self) -> None:
        """Raise ``ConfigError`` for what cannot work together."""
        if (self.curve_secret is None) != (self.allow is None):
            raise ConfigError("--curve-secret and --allow belong together; give both")
        keys = ("api_key_file", "admin_key_file", "cors_origin", "model_name")
        useless = [name for name in keys if not self.http and getattr(self, name)]
        if useless:
            raise ConfigError(
                f"{useless[0]} is for HTTP, which http=false turns off: drop one of them"
            )
        if self.ready_file is not None and not self.ready_file.absolute().parent.is_dir():
            raise ConfigError(f"ready_file={self.ready_file}: there is no such folder; make it")

    def gateway(
        self, endpoint: str, keys: tuple[ApiKey, ...], *, drain_s: float, log_format: str
    ) -> GatewaySettings:
        """Return the checked settings of the HTTP process for a runtime at ``endpoint``."""
        return GatewaySettings(
            endpoint=endpoint,
            host=self.host,
            port=self.port,
            model_names=self.model_name,
            keys=keys,
            insecure=self.insecure,
            allowed_hosts=self.allowed_host,
            cors_origins=self.cors_origin,
            max_body_bytes=parse_size("max_body", self.max_body),
            max_queue=self.http_max_queue,
            max_connections=self.max_connections,
            request_timeout_s=self.request_timeout_s,
            drain_s=drain_s,
            log_format="json" if log_format == "json" else "text",
            access_log=self.access_log,
            redact=self.redact,
            open_metrics=self.open_metrics,
        ).checked()
