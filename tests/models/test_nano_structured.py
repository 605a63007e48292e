"""The evaluation of JSON and tool tasks: under a constraint everything is valid."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import radixrt as rt


def test_constrained_texts_are_valid_at_any_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    structured = importlib.import_module("tools.nano.structured")
    with rt.Runtime() as backend:
        scores = structured.evaluate(backend, 4)
    assert all(score.valid == 1.0 for (_, way, _), score in scores.items() if way != "free")
    assert scores["JSON", "spaced", 0.0].right == 1.0
    assert scores["tool call", "constrained", 0.0].right == 1.0
    assert all(score.right <= score.valid for score in scores.values())
    assert "| tool call | free | 2 |" in structured.table(scores)
    sys.modules.pop("tools.nano.structured")
