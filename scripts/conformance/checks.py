"""What the script of a client reports, one check at a time. Needs nothing but Python.

    checks = Checks()
    with checks.that("a chat is answered"):
        assert …
    checks.end()

A check that fails is noted with its error, and the script goes on.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

URL = os.environ.get("CONFORMANCE_URL", "http://127.0.0.1:8000")
"""Where the server listens."""

BASE_URL = f"{URL}/v1"
MODEL = os.environ.get("CONFORMANCE_MODEL", "nano")
ENDPOINT = os.environ.get("CONFORMANCE_ENDPOINT", "")
"""Where it takes ZeroMQ."""

FACTS = "Facts: Maria lives in Lisbon and works as a baker."
QUESTION = "Where does Maria live?"
ANSWER = "Maria lives in Lisbon."
MESSAGES = [{"role": "system", "content": FACTS}, {"role": "user", "content": QUESTION}]
"""What the shipped model knows how to answer."""

EXTRACT = (
    "Extract the person as JSON with the keys name, age, job.\n"
    "Text: Meet Eva Berg, a pilot who is 41 years old.\nJSON:"
)


class Checks:
    """The checks of one session; ``end`` writes them down and sets the exit status."""

    def __init__(self) -> None:
        self._results: list[dict[str, str]] = []
        self._notes: list[str] = []

    @contextmanager
    def that(self, what: str) -> Iterator[None]:
        """Note whether the block ends without an error."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            self._results.append({"what": what, "error": text[:300]})
            print(f"FAIL {what}: {text[:300]}", flush=True)
        else:
            self._results.append({"what": what, "error": ""})
            print(f"ok   {what}", flush=True)

    def note(self, text: str) -> None:
        """Add what readers of the table should know."""
        self._notes.append(text)

    def end(self) -> None:
        """Write the results where the runner wants them; exit 1 when a check failed."""
        if path := os.environ.get("CONFORMANCE_RESULTS"):
            report = {"checks": self._results, "notes": self._notes}
            Path(path).write_text(json.dumps(report), encoding="utf-8")
        sys.exit(any(result["error"] for result in self._results))
