"""A model's directory, looked at before anything is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from radixrt.errors import ConfigError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_model_directory(path: Path) -> None:
    """Raise ``ConfigError`` unless there is such a directory; it says what to do instead."""
    if path.is_dir():
        return
    if path.is_file():
        raise ConfigError(
            f"model={path} is a file; give a directory in Hugging Face format (config.json, "
            "tokenizer.json, safetensors)"
        )
    name = str(path)
    if _HUB_NAME.fullmatch(name) is None:
        raise ConfigError(
            f"model={path}: no such directory; give one in Hugging Face format, or none for the "
            "model that ships"
        )
    cached = _cached(name)
    way_out = (
        f"it was downloaded to {cached}: give that"
        if cached is not None
        else f"to get it: hf download {name} --local-dir DIRECTORY, then give DIRECTORY"
    )
    raise ConfigError(
        f"model={path}: no such directory, and names of Hugging Face's hub are not resolved; "
        f"{way_out}"
    )


def _cached(name: str) -> Path | None:
    """Return where Hugging Face's own tools keep a model, if they have it."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None
