"""The page of other people's clients says what was run, and nothing else."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts" / "conformance"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in ("clients", "table"):
        sys.modules.pop(name, None)


def test_the_page_is_what_the_results_give() -> None:
    clients = importlib.import_module("clients").CLIENTS
    rows = json.loads((SCRIPTS / "results.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert page == importlib.import_module("table").page(clients, rows)
    assert set(rows) <= {client.name for client in clients}


def test_a_check_that_fails_is_told() -> None:
    clients = importlib.import_module("clients").CLIENTS
    checks = [{"what": "a stream", "error": "TimeoutError: late"}, {"what": "a chat", "error": ""}]
    row = {"version": "1.0", "date": "2026-11-24", "checks": checks, "notes": ["slow"]}
    page = importlib.import_module("table").page(clients, {clients[0].name: row})
    assert "1 passed, **1 failed**" in page
    assert f"* {clients[0].name}: a stream: `TimeoutError: late`" in page
    assert f"* {clients[0].name}: slow" in page


def test_every_client_has_its_session() -> None:
    clients = importlib.import_module("clients").CLIENTS
    assert all((SCRIPTS / "sessions" / client.script).exists() for client in clients)
    assert len({client.name for client in clients}) == len(clients)
