"""``OpenAI``: a backend at the other end of OpenAI's HTTP API."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Literal

from radixrt.errors import ConfigError
from radixrt.lang.backend import Backend
from radixrt.lang.openai.settings import Mode, SelectBy, settings


class OpenAI(Backend):
    """An endpoint that speaks OpenAI's API, as a backend of programs.

    Programs with roles go to ``/chat/completions``, others to ``/completions``. What the endpoint
    cannot do is emulated here or refused where the value is read, with ``Unsupported`` naming the
    feature and the way out; ``docs/openai.md`` lists which. Needs ``radixrt[openai]``.
    """

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        *,
        mode: Mode = "auto",
        dialect: Literal["auto", "openai", "vllm", "sglang", "radixrt"] = "auto",
        select: SelectBy = "auto",
        timeout_s: float = 600.0,
        max_retries: int = 2,
        max_concurrency: int = 64,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Ask the endpoint what it serves.

        * ``base_url`` (default ``OPENAI_BASE_URL``, then OpenAI's own) ends in ``/v1`` as a rule;
          ``api_key`` defaults to ``OPENAI_API_KEY``. Without ``model`` the only one is used.
        * ``mode``: ``chat`` sends text without roles as one user message; ``completions`` writes
          roles as plain lines.
        * ``dialect``: the server's extensions; ``auto`` goes by its ``/models``.
        * ``select``: by the options' ``logprobs``, by ``generation`` of one of them under a
          constraint, or ``auto``: by logprobs where the endpoint can.
        * ``timeout_s`` bounds a call, all its requests together. ``max_retries`` bounds how often a
          request is repeated that was refused for now (429, with its ``Retry-After``) or failed
          (5xx, connection). ``max_concurrency`` calls run at a time, more wait.

        Raises ``RuntimeUnavailable`` when nobody answers, ``Unauthorized`` for a refused key.
        """
        chosen = settings(
            base_url,
            model,
            api_key,
            mode=mode,
            dialect=dialect,
            select=select,
            timeout_s=timeout_s,
            max_retries=max_retries,
            max_concurrency=max_concurrency,
            headers=headers,
        )
        for package in ("httpx", "jsonschema"):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"{package} is not installed; rt.OpenAI needs it: pip install radixrt[openai]"
                )
        from radixrt.lang.openai.engine import Engine  # late: it imports httpx

        self.base_url = chosen.base_url
        super().__init__(Engine(chosen).transport, timeout_s=min(chosen.timeout_s, 60.0) + 1.0)
