"""How an endpoint is reached and spoken to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from radixrt.errors import InvalidArgument
from radixrt.lang.openai.dialect import DIALECTS

Mode = Literal["auto", "chat", "completions"]
SelectBy = Literal["auto", "logprobs", "generation"]

DEFAULT_URL = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked arguments of ``OpenAI``. ``dialect`` may be "auto"; ``model`` empty asks for the only
    one that is served."""

    base_url: str
    model: str
    api_key: str = field(repr=False)
    mode: Mode
    dialect: str
    select: SelectBy
    timeout_s: float
    max_retries: int
    max_concurrency: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)

    @property
    def server_url(self) -> str:
        """The address without ``/v1``, where servers have what OpenAI's API does not."""
        return self.base_url.removesuffix("/v1")


def settings(
    base_url: str | None,
    model: str | None,
    api_key: str | None,
    *,
    mode: str,
    dialect: str,
    select: str,
    timeout_s: float,
    max_retries: int,
    max_concurrency: int,
    headers: Mapping[str, str] | None,
) -> Settings:
    """Return the settings. Raises ``InvalidArgument`` for what cannot be used."""
    url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgument(
            "base_url", url, "use http://HOST:PORT/v1 or https://…/v1; a model's name is model="
        )
    if parts.username or parts.query or parts.fragment:
        # Not shown: it may hold a password.
        raise InvalidArgument("base_url", parts.hostname, "leave credentials, query and # out")
    if model is not None and (not isinstance(model, str) or not model):
        raise InvalidArgument("model", model, "use the name under which the endpoint serves it")
    key = os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key
    if not isinstance(key, str) or not key.isascii() or any(char.isspace() for char in key):
        raise InvalidArgument("api_key", "…", "use the key as it was issued, without blanks")
    _one_of("mode", mode, ("auto", "chat", "completions"))
    _one_of("dialect", dialect, ("auto", *DIALECTS))
    _one_of("select", select, ("auto", "logprobs", "generation"))
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise InvalidArgument("timeout_s", timeout_s, "use a positive number of seconds")
    _check_headers(headers or {})
    _whole("max_retries", max_retries, 0, 20)
    _whole("max_concurrency", max_concurrency, 1, 4096)
    return Settings(
        url.rstrip("/"),
        model or "",
        key,
        mode,  # type: ignore[arg-type]
        dialect,
        select,  # type: ignore[arg-type]
        float(timeout_s),
        max_retries,
        max_concurrency,
        tuple(dict(headers or {}).items()),
    )


def _check_headers(headers: Any) -> None:
    if not isinstance(headers, Mapping):
        raise InvalidArgument("headers", "…", "use a mapping of names to values")
    for name, value in headers.items():
        is_text = isinstance(name, str) and isinstance(value, str)
        if (
            not is_text
            or not name.isascii()
            or not value.isascii()
            or not (name + value).isprintable()
        ):
            # Values are not shown: they may be secret.
            raise InvalidArgument("headers", name, "use printable ASCII names and values")


def _one_of(argument: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidArgument(argument, value, f"use {', '.join(known)}")


def _whole(argument: str, value: Any, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise InvalidArgument(argument, value, f"use a whole number from {lowest} to {highest}")
