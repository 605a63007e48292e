"""``radixrt doctor``."""

from __future__ import annotations

import sys
from typing import Any

import typer


def register(application: Any) -> None:
    """Add the command to the command line."""
    application.command()(doctor)


def doctor() -> None:
    """Say whether the runtime can run here, how well, and the one command that mends it."""
    from radixrt.doctor.command import run_doctor
    from radixrt.doctor.facts import gather

    if not run_doctor(gather(), sys.stdout):
        raise typer.Exit(1)
