"""The ``radixrt`` command.

A group of commands is a module of this package with ``register(application)``, which adds them to
the typer application; its name stands in ``GROUPS``, in the order of ``--help``. Such a module
imports what a command needs when the command runs, and runs it under ``reporting``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from radixrt.elsewhere import command_line_hint

GROUPS = ("serve", "talk", "plan", "bench", "doctor", "keys", "cache", "top", "trace", "version")
"""Modules of this package that hold commands."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ``arguments`` are those of the process when None."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if hint := command_line_hint(words):
        print(f"radixrt: {hint}", file=sys.stderr)
        sys.exit(2)
    try:
        _application()(args=words, prog_name="radixrt")
    except KeyboardInterrupt:  # before a command, or between two of its steps
        sys.exit(130)


def _application() -> Any:
    try:
        return _with_commands()
    except ImportError as error:  # the client alone has no command line
        print(
            f"radixrt: {error}; the command needs more: pip install radixrt[runtime]",
            file=sys.stderr,
        )
        sys.exit(1)


def _with_commands() -> Any:
    import typer

    application = typer.Typer(
        help="Language-model programs over a prefix-sharing runtime.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    for name in GROUPS:
        importlib.import_module(f"{__name__}.{name}").register(application)
    return application
