"""``radixrt version``."""

from __future__ import annotations

from typing import Any


def register(application: Any) -> None:
    """Add the command to the command line."""
    application.command()(version)


def version() -> None:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        print(installed("radixrt"))
    except PackageNotFoundError:
        print("not installed")
