"""The report that ``run_batch`` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.errors import InvalidArgument, Overloaded, ProgramError
from radixrt.protocol import Generate


@rt.function
def echo(s: rt.ProgramState, word: str) -> None:
    s += word + rt.gen("x")


def fail_on(runtime: ScriptedRuntime, word: str) -> None:
    def answer(text: str, generate: Generate) -> str:
        if word in text:
            raise Overloaded(f"no room for {text}")
        return text.upper()

    runtime.answer = answer


def test_a_report_tells_of_every_row_and_shows_failures_with_their_arguments(
    runtime: ScriptedRuntime, backend: rt.Backend, tmp_path: Path
) -> None:
    fail_on(runtime, "seven")
    path = tmp_path / "report.html"
    words = ["one", "two", "seven & <eight>", "nine"]
    rows = [{"word": word} for word in words]
    states = echo.run_batch(rows, backend=backend, on_error="keep", report=path)
    document = path.read_text(encoding="utf-8")
    assert "<h1>echo: batch</h1>" in document
    assert "4 of 4" in document
    good = [state for state in states if isinstance(state, rt.ProgramState)]
    prompt = sum(state.usage()["prompt_tokens"] for state in good)
    assert f"<dt>prompt tokens</dt><dd>{prompt:,}</dd>" in document
    assert "<h2>Failures</h2>" in document
    assert "seven &amp; &lt;eight&gt;" in document
    assert "no room for" in document
    assert not (tmp_path / "report.html.partial").exists()


def test_a_batch_that_is_given_up_still_has_its_report(
    runtime: ScriptedRuntime, backend: rt.Backend, tmp_path: Path
) -> None:
    fail_on(runtime, "two")
    path = tmp_path / "report.html"
    with pytest.raises(ProgramError):
        echo.run_batch([{"word": "two"}] * 3, backend=backend, num_threads=1, report=path)
    assert "<h2>Failures</h2>" in path.read_text(encoding="utf-8")
    results = echo.run_batch(
        [("a",), ("b",), ("c",)], backend=backend, generator_style=True, report=path
    )
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert "of 3</dd>" in path.read_text(encoding="utf-8")


def test_rows_from_the_journal_are_counted_apart(backend: rt.Backend, tmp_path: Path) -> None:
    journal, path = tmp_path / "journal", tmp_path / "report.html"
    rows = [{"word": str(i)} for i in range(4)]
    echo.run_batch(rows, backend=backend, journal=journal)
    echo.run_batch(rows, backend=backend, journal=journal, resume=True, report=path)
    document = path.read_text(encoding="utf-8")
    assert "<dt>from the journal</dt><dd>4 rows</dd>" in document
    assert "0 of 4" in document


def test_a_report_that_cannot_be_written_is_refused_before_a_row_runs(
    runtime: ScriptedRuntime, backend: rt.Backend, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match="report="):
        echo.run_batch([("a",)], backend=backend, report=tmp_path / "none" / "x.html")
