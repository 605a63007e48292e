"""The page of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clients import Client

_HEAD = """\
# Other people's clients

Each of these runs a scripted session against `radixrt serve` with the shipped model, in a virtual
environment of its own. `python scripts/conformance/run.py [CLIENT…]` installs them, runs them and
writes this page; it is no part of `make test`. No client may download anything but itself:
tokenizers and models are the server's.

| client | version | what was exercised | checks | date |
|---|---|---|---|---|
"""


def page(clients: Sequence[Client], rows: Mapping[str, Any]) -> str:
    """Return the page: a row a client, then what failed and what is to be known."""
    table, failures, notes = "", [], []
    for client in clients:
        row = rows.get(client.name)
        if row is None:
            table += f"| {client.name} | – | {client.exercised} | not run | – |\n"
            continue
        failed = [check for check in row["checks"] if check["error"]]
        passed = len(row["checks"]) - len(failed)
        verdict = f"{passed} passed" + (f", **{len(failed)} failed**" if failed else "")
        cells = (client.name, row["version"], client.exercised, verdict, row["date"])
        table += f"| {' | '.join(cells)} |\n"
        failures += [f"* {client.name}: {check['what']}: `{check['error']}`" for check in failed]
        notes += [f"* {client.name}: {note}" for note in row["notes"]]
    text = _HEAD + table
    if failures:
        text += "\n## What failed\n\n" + "\n".join(failures) + "\n"
    if notes:
        text += "\n## Notes\n\n" + "\n".join(notes) + "\n"
    return text
