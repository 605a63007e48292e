"""A progress bar for ``run_batch``: one line on standard error, a few times a second."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 30
_INTERVAL_S = 0.1


class ProgressBar:
    """Counts rows up to ``total``. Without a title it prints nothing."""

    def __init__(
        self, title: str | None, total: int, *, done: int = 0, stream: TextIO | None = None
    ) -> None:
        self._title = title
        self._total = total
        self._done = self._done_before = done
        self._stream = stream or sys.stderr
        self._began = time.monotonic()
        self._printed = 0.0
        self._print()

    def advance(self) -> None:
        """One more row is done."""
        self._done += 1
        if time.monotonic() - self._printed >= _INTERVAL_S:
            self._print()

    def close(self) -> None:
        """Print the last state and leave the line."""
        self._print()
        if self._title is not None:
            print(file=self._stream, flush=True)

    def _print(self) -> None:
        if self._title is None:
            return
        self._printed = time.monotonic()
        seconds = self._printed - self._began
        rate = (self._done - self._done_before) / seconds if seconds > 0 else 0.0
        bar = "#" * (_WIDTH * self._done // max(self._total, 1))
        line = f"\r{self._title} [{bar:<{_WIDTH}}] {self._done}/{self._total} {rate:.1f} rows/s "
        print(line, end="", file=self._stream, flush=True)
