"""``radixrt bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from radixrt.cli.reporting import reporting


def register(application: Any) -> None:
    """Add the command to the command line."""
    application.command()(bench)


def bench(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model directory, or a shape with random weights: llama-3.1-8b, qwen2.5-0.5b; "
            "without it the model that ships.",
        ),
    ] = "",
    only: Annotated[
        str,
        typer.Option(help="Comma-separated: single, batch, few_shot, multi_turn, tree."),
    ] = "",
    scale: Annotated[float, typer.Option(help="Factor that shortens every length.")] = 1.0,
    seeds: Annotated[
        str, typer.Option(help="Comma-separated; the better of these runs counts.")
    ] = "0,100",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="An option of the runtime; repeatable."),
    ] = None,
    engine: Annotated[bool, typer.Option(help="Measure the engine in process.")] = True,
    server: Annotated[bool, typer.Option(help="Measure through a server over ZeroMQ.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File that gets the results.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="File that gets a report to look at.")
    ] = None,
) -> None:
    """Measure five workloads, on the engine in process and through a server."""
    with reporting():
        from radixrt.bench.command import run_bench

        run_bench(
            model,
            only=[name.strip() for name in only.split(",") if name.strip()],
            scale=scale,
            seeds=_numbers("--seeds", seeds),
            settings=settings or [],
            has_engine=engine,
            has_server=server,
            json_file=json_file,
            html_file=html_file,
        )


def _numbers(option: str, text: str) -> list[int]:
    from radixrt.errors import ConfigError

    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"{option} {text}: use whole numbers separated by commas") from None
