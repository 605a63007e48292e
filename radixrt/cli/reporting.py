"""What a command does with an error: one line on standard error and exit status 1."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import typer

from radixrt.errors import ProgramError, RadixError


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Run a command; what it raises for its user to mend ends it with one line."""
    try:
        yield
    except ProgramError as error:  # of the command's own program: its line is no news
        print(f"radixrt: {str(error.cause).strip()}", file=sys.stderr)
        raise typer.Exit(1) from None
    except (RadixError, OSError) as error:
        print(f"radixrt: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except ImportError as error:
        print(f"radixrt: {error}; pip install radixrt[runtime]", file=sys.stderr)
        raise typer.Exit(1) from None
