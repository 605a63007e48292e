"""``radixrt trace``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from radixrt.cli.reporting import reporting


def register(application: Any) -> None:
    """Add the command to the command line."""
    application.command(
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
    )(trace)


def trace(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(help="A Python file that runs programs.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the trace is written.")
    ] = Path("trace.json"),
) -> None:
    """Run a script and write what its programs did as a trace for ui.perfetto.dev.

    What follows the script's name are its own arguments; options of this command come before it.
    """
    with reporting():
        status = run_traced(script, context.args, output)
    raise typer.Exit(status)


def run_traced(script: Path, arguments: list[str], output: Path) -> int:
    """Run the script in a process of its own, write the trace and return its exit status.

    The trace is written also when the script fails. Raises ``InvalidArgument``.
    """
    import orjson

    from radixrt.errors import InvalidArgument
    from radixrt.lang.perfetto import perfetto
    from radixrt.lang.trace_file import TRACE_VARIABLE, read_traces

    if not script.is_file():
        raise InvalidArgument("script", script, "name a Python file")
    if not output.absolute().parent.is_dir():
        raise InvalidArgument("output", output, "name a file in a directory that there is")
    with tempfile.TemporaryDirectory(prefix="radixrt-trace-") as folder:
        environment = {**os.environ, TRACE_VARIABLE: folder}
        process = subprocess.Popen([sys.executable, str(script), *arguments], env=environment)
        try:
            status = process.wait()
        except KeyboardInterrupt:  # it goes to the script as well
            status = process.wait()
        traces = read_traces(Path(folder))
        output.write_bytes(orjson.dumps(perfetto(traces)))
    num_programs = sum(
        type(record).__name__ == "ProgramBegan" for trace in traces for record in trace.records
    )
    print(f"{output}: {num_programs} programs; open it at https://ui.perfetto.dev", file=sys.stderr)
    return status if status >= 0 else 128 - status
