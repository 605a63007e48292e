"""``radixrt top``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from radixrt.cli.client_options import ClientOptions, Endpoint
from radixrt.cli.options import with_settings
from radixrt.cli.reporting import reporting
from radixrt.settings import Given


def register(application: Any) -> None:
    """Add the command to the command line."""
    application.command()(with_settings(top, ClientOptions))


def top(
    given: dict[str, Given],
    where: Endpoint = "",
    every_s: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print what there is now and end.")] = False,
    texts: Annotated[bool, typer.Option(help="Show how cached prefixes begin.")] = True,
) -> None:
    """Watch a runtime: throughput, hit rate, tiers, running programs, the hottest prefixes."""
    with reporting():
        from radixrt.top import run_top

        run_top(ClientOptions.of(given, where).connect, every_s=every_s, once=once, texts=texts)
