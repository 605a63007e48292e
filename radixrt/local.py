"""A runtime in the caller's process; all of it is imported when one is started."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol

from radixrt.errors import ConfigError
from radixrt.transport import LocalTransport

_NEEDED = ("jinja2", "regex", "tokenizers", "torch")
"""Packages of the ``runtime`` extra without which no model is served."""


class LocalRuntimeHandle(Protocol):
    """A running runtime."""

    def transport(self) -> LocalTransport:
        """Return a new connection to it."""

    def shutdown(self) -> None:
        """End it. Idempotent."""


def start_local(model: str | Path | None = None, **options: Any) -> LocalRuntimeHandle:
    """Start a runtime on threads of this process and return it when the model serves.

    ``model`` is a directory in Hugging Face format, None the model that ships; ``options`` are
    those of ``RuntimeConfig``. Raises ``ConfigError`` for an unknown option or a missing package,
    and ``ModelError`` for a directory that cannot be served.
    """
    from radixrt.config import RuntimeConfig
    from radixrt.model_directory import check_model_directory

    config = RuntimeConfig.of(model=None if model is None else Path(model), **options)
    check_model_directory(config.model_path)
    for package in _NEEDED:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{package} is not installed; a runtime needs it: pip install radixrt[runtime]"
            )
    runtime = importlib.import_module("radixrt.runtime.local")
    handle: LocalRuntimeHandle = runtime.LocalRuntime(config)
    return handle
