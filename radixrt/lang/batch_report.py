"""The report of a batch: tokens by source, latencies, throughput, the slowest rows, failures."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radixrt.html_report import (
    Distribution,
    Rows,
    Section,
    Timeline,
    TokenBars,
    check_path,
    render,
)
from radixrt.lang.journal import FinishedRow
from radixrt.lang.state import ProgramState

MAX_ROWS = 20
"""Slowest rows, and failures, that are listed."""

_SHOWN = 160


@dataclass(slots=True)
class _Row:
    began: float
    ended: float = 0.0
    tokens: dict[str, float] = field(default_factory=dict)
    error: str = ""


class BatchReport:
    """Gathers what becomes of a batch's rows and writes it as one HTML file at the end.

    Tokens are those of each row's own branch: what its forks computed is not in them.
    """

    def __init__(
        self, path: str | os.PathLike[str], program: str, rows: Sequence[dict[str, Any]]
    ) -> None:
        """Raises ``InvalidArgument`` for a path that could not be written to."""
        self._path = check_path("report", Path(path))
        self._program = program
        self._arguments = rows
        self._rows: dict[int, _Row] = {}
        self._num_resumed = 0
        self._begin = time.monotonic()

    def resumed(self, num_rows: int) -> None:
        """So many rows were finished by an earlier run."""
        self._num_resumed = num_rows

    def began(self, index: int) -> None:
        """A row begins."""
        self._rows[index] = _Row(time.monotonic() - self._begin)

    def ended(self, index: int, outcome: ProgramState | FinishedRow | BaseException) -> None:
        """A row has ended: its state, or its error."""
        row = self._rows[index]
        row.ended = time.monotonic() - self._begin
        if isinstance(outcome, BaseException):
            row.error = f"{type(outcome).__name__}: {outcome}"
        else:
            row.tokens = by_source(outcome.usage())

    def write(self) -> None:
        """Write the file; rows that have not ended are not in it."""
        ended = {i: row for i, row in self._rows.items() if row.ended}
        document = render(f"{self._program}: batch", self._facts(ended), self._sections(ended))
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(document, encoding="utf-8")
        partial.replace(self._path)

    def _facts(self, ended: Mapping[int, _Row]) -> dict[str, str]:
        failed = sum(bool(row.error) for row in ended.values())
        total = _sum(ended)
        prompt = total["cached"] + total["computed"]
        seconds = max((row.ended for row in ended.values()), default=0.0)
        facts = {
            "rows": f"{len(ended):,} of {len(self._arguments):,}",
            "failed": f"{failed:,}",
            "seconds": f"{seconds:,.1f}",
            "rows a second": f"{len(ended) / seconds:,.2f}" if seconds else "-",
            "prompt tokens": f"{prompt:,.0f}",
            "of them cached": f"{total['cached'] / prompt:.1%}" if prompt else "-",
            "generated tokens": f"{total['generated'] + total['forced']:,.0f}",
        }
        if self._num_resumed:
            facts["from the journal"] = f"{self._num_resumed:,} rows"
        return facts

    def _sections(self, ended: Mapping[int, _Row]) -> list[Section]:
        good = {i: row for i, row in ended.items() if not row.error}
        slowest = sorted(ended, key=lambda i: ended[i].began - ended[i].ended)[:MAX_ROWS]
        return [
            TokenBars("Tokens by source", [("all rows", _sum(ended))]),
            Distribution(
                "Seconds a row takes", [row.ended - row.began for row in good.values()], "s"
            ),
            Timeline(
                "Tokens of the rows that ended",
                [(row.ended, sum(row.tokens.values())) for row in good.values()],
                "tokens/s",
            ),
            Rows(
                "Slowest rows",
                ("row", "seconds", "prompt", "cached", "generated", "arguments"),
                [self._line(i, ended[i]) for i in slowest],
            ),
            Rows(
                "Failures",
                ("row", "error", "arguments"),
                [
                    (str(i), _cut(row.error), self._told(i))
                    for i, row in sorted(ended.items())
                    if row.error
                ][:MAX_ROWS],
            ),
        ]

    def _line(self, index: int, row: _Row) -> tuple[str, ...]:
        tokens = row.tokens
        prompt = tokens.get("cached", 0) + tokens.get("computed", 0)
        return (
            str(index),
            f"{row.ended - row.began:.2f}",
            f"{prompt:,.0f}",
            f"{tokens.get('cached', 0):,.0f}",
            f"{tokens.get('generated', 0) + tokens.get('forced', 0):,.0f}",
            self._told(index),
        )

    def _told(self, index: int) -> str:
        return _cut(", ".join(f"{k}={v!r}" for k, v in self._arguments[index].items()))


def by_source(usage: Mapping[str, int]) -> dict[str, float]:
    """Return the token counts of ``usage()`` by where the tokens came from."""
    forced = usage.get("forced_tokens", 0)
    return {
        "cached": usage.get("cached_tokens", 0),
        "computed": usage.get("computed_tokens", 0),
        "generated": usage.get("completion_tokens", 0) - forced,
        "forced": forced,
    }


def _sum(rows: Mapping[int, _Row]) -> dict[str, float]:
    total = by_source({})
    for row in rows.values():
        for name, count in row.tokens.items():
            total[name] += count
    return total


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
