"""What a benchmark found: as a table, and as JSON with everything one needs to run it again."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import msgspec

from radixrt.bench.measure import Measurement, best
from radixrt.config import RuntimeConfig

PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "flashinfer": "flashinfer-python",
    "sgl_kernel": "sglang-kernel",
    "radixrt": "radixrt",
}
"""Name in the report → the distribution whose version it gives."""

HEADER = ("workload", "in process", "output tok/s", "through the server", "output tok/s", "ratio")


@dataclass(frozen=True, slots=True)
class Side:
    """The measurements of one way to reach the engine. ``start_s``: from the start of its process
    to the first token."""

    start_s: float
    info: dict[str, Any]
    runs: tuple[Measurement, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole benchmark; a side that was not measured is None."""

    model: str
    config: RuntimeConfig
    scale: float
    seeds: tuple[int, ...]
    engine: Side | None
    server: Side | None

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table's rows: start-up first, then a row a workload."""
        sides = [self.engine, self.server]
        starts = [None if side is None else side.start_s for side in sides]
        rows = [_row("first token", starts, ["", ""])]
        fastest = [{} if side is None else best(side.runs) for side in sides]
        for name in {**fastest[0], **fastest[1]}:
            runs = [found.get(name) for found in fastest]
            rows.append(
                _row(
                    name,
                    [None if run is None else run.seconds for run in runs],
                    ["" if run is None else f"{run.rate:,.0f}" for run in runs],
                )
            )
        return rows

    def as_json(self) -> dict[str, Any]:
        """Return everything, as JSON takes it."""
        config = asdict(self.config)
        config["model"] = str(self.config.model_path)
        sides = [side for side in (self.engine, self.server) if side is not None]
        info: dict[str, Any] = next((side.info for side in sides if side.info), {})
        return {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "versions": versions(),
            "model": self.model,
            "device": info.get("device", ""),
            "config": config,
            "scale": self.scale,
            "seeds": list(self.seeds),
            "engine": _side(self.engine),
            "server": _side(self.server),
            "workloads": self._comparison(),
        }

    def _comparison(self) -> dict[str, Any]:
        if self.engine is None or self.server is None:
            return {}
        engine, server = best(self.engine.runs), best(self.server.runs)
        digests = [
            {(run.workload, run.seed): run.digest for run in side.runs}
            for side in (self.engine, self.server)
        ]
        return {
            name: {
                "ratio": engine[name].seconds / server[name].seconds,
                "same_outputs": all(
                    digests[0][key] == digests[1][key] for key in digests[0] if key[0] == name
                ),
            }
            for name in engine
        }


def show(report: Report, stream: TextIO) -> None:
    """Print the table: drawn on a terminal, plain lines elsewhere."""
    title = f"{report.model}: seconds, better of seeds {', '.join(map(str, report.seeds))}"
    if report.scale != 1.0:
        title += f", lengths × {report.scale:g}"
    if stream.isatty():
        try:
            _show_drawn(title, report.rows(), stream)
            return
        except ImportError:
            pass
    print(title, file=stream)
    rows = [HEADER, *report.rows()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip(), file=stream)


def commit() -> str | None:
    """Return the commit that runs, with a ``+`` when files differ from it; None outside of a
    checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return found + ("+" if changed else "")


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of what computes; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            found[name] = None
    return found


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _side(side: Side | None) -> dict[str, Any] | None:
    if side is None:
        return None
    return {
        "start_s": side.start_s,
        "info": side.info,
        "best": {
            name: {"seconds": run.seconds, "rate": run.rate}
            for name, run in best(side.runs).items()
        },
        "runs": msgspec.to_builtins(side.runs),
    }


def _row(name: str, seconds: Sequence[float | None], rates: Sequence[str]) -> tuple[str, ...]:
    engine, server = seconds
    is_whole = engine is not None and server is not None
    ratio = f"{engine / server:.1%}" if is_whole and engine and server else ""
    times = ["" if value is None else f"{value:.2f}" for value in seconds]
    return (name, times[0], rates[0], times[1], rates[1], ratio)


def _show_drawn(title: str, rows: Sequence[tuple[str, ...]], stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console(file=stream).print(table)


def note(text: str) -> None:
    """Say on standard error what is going on."""
    print(f"radixrt bench: {text}", file=sys.stderr, flush=True)
