"""A look inside a generation: per token and per field."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import replace
from typing import Any

import pytest
from lang.sample_types import Point
from lang.scripted_runtime import ScriptedRuntime

import radixrt as rt
from radixrt.lang.token_view import TokenView
from radixrt.protocol import FieldScore, KeywordStatus, TokenTrace

TRACE = (
    TokenTrace(1, '{"x":', "forced", 1, 0.9, 0.0),
    TokenTrace(2, "<b>", "sampled", 1_200, 0.25, -0.5),
    TokenTrace(3, "}", "steered", 2, 0.75, -1.5),
)


@rt.function
def ask(s: rt.ProgramState, **options: Any) -> None:
    s += "?" + rt.gen("x", type=Point, **options)


@pytest.fixture
def state(runtime: ScriptedRuntime, backend: rt.Backend) -> rt.ProgramState:
    runtime.answer = lambda text, generate: '{"x":1,"y":23}'
    runtime.decorate = lambda output, generate: replace(
        output,
        trace=TRACE,
        warnings=("a warning",),
        enforcement=(KeywordStatus("/properties/x", "not", "checked"),),
        field_scores=(FieldScore("/x", 5, 6, -0.5, 1), FieldScore("/y", 11, 13, -3.0, 2)),
        attempts=2,
    )
    return ask.run(trace=True, backend=backend)


def test_every_token_says_how_it_came_about(state: rt.ProgramState) -> None:
    explanation = state.explain("x")
    assert tuple(explanation) == TRACE
    assert explanation[1:] == TRACE[1:]
    table = str(explanation).splitlines()
    assert table[0].split() == ["token", "how", "allowed", "removed", "logprob"]
    assert table[2].split() == ["'<b>'", "sampled", "1,200", "0.250", "-0.500"]
    assert explanation.summary == (
        "3 tokens: 1 sampled, 1 forced, 1 steered; "
        "the mask removed 50.0% of the probability on average"
    )
    assert len({len(line) for line in table[:4]}) == 1


def test_it_shows_itself_with_rich_and_without(
    state: rt.ProgramState, monkeypatch: pytest.MonkeyPatch
) -> None:
    explanation = state.explain("x")
    rich = io.StringIO()
    explanation.show(rich)
    assert "1,200" in rich.getvalue()
    monkeypatch.setitem(sys.modules, "rich.console", None)
    plain = io.StringIO()
    explanation.show(plain)
    assert plain.getvalue() == f"{explanation}\n"


def test_a_notebook_shows_the_text_escaped_with_tooltips(state: rt.ProgramState) -> None:
    html = state.explain("x")._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert 'title="sampled: 1,200 allowed, 25.0% removed, logprob -0.500"' in html


def test_nothing_to_explain_is_no_division_by_zero() -> None:
    assert TokenView(()).summary.startswith("0 tokens: none")


def test_only_what_was_traced_can_be_explained(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.answer = lambda text, generate: '{"x":1}'
    state = ask.run(backend=backend)
    with pytest.raises(rt.InvalidArgument, match="trace=True"):
        state.explain("x")
    state["y"] = 1
    with pytest.raises(rt.InvalidArgument, match="not generated"):
        state.explain("y")


def test_fields_have_their_scores_and_keywords_their_fate(state: rt.ProgramState) -> None:
    info = state.meta("x")
    assert info == state.get_meta_info("x")
    assert info["attempts"] == 2
    assert info["warnings"] == ["a warning"]
    assert info["enforcement"] == [
        {"pointer": "/properties/x", "keyword": "not", "status": "checked"}
    ]
    assert info["fields"]["/x"]["text"] == "1"
    assert info["fields"]["/y"] == {
        "logprob": -3.0,
        "num_tokens": 2,
        "confidence": math.exp(-1.5),
        "text": "23",
    }
