"""What a runtime process says on standard error: one line an event, as text or as JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Literal, TextIO

from radixrt.runtime.wire import Progress


class Reporter:
    """Writes events with the seconds since the start."""

    def __init__(self, log_format: Literal["text", "json"], stream: TextIO = sys.stderr) -> None:
        self._is_json = log_format == "json"
        self._stream = stream
        self._began = time.monotonic()

    def event(self, name: str, text: str = "", **fields: object) -> None:
        """Write one event."""
        seconds = time.monotonic() - self._began
        if self._is_json:
            line = {"time": time.time(), "event": name, "text": text, **fields}
            print(json.dumps(line, default=str), file=self._stream, flush=True)
        else:
            details = [text, *(f"{key} {value}" for key, value in fields.items())]
            told = ", ".join(detail for detail in details if detail)
            print(f"radixrt {seconds:7.2f} s  {name}: {told}", file=self._stream, flush=True)

    def progress(self, progress: Progress) -> None:
        """Write a phase of the engine's start."""
        self.event(progress.phase, progress.detail)
