"""What a benchmark found, to look at."""

from __future__ import annotations

from collections.abc import Iterator

from radixrt.bench.measure import Measurement, best
from radixrt.bench.report import HEADER, Report, Side, commit, versions
from radixrt.html_report import Rows, Section, TokenBars, ValueBars, render


def as_html(report: Report) -> str:
    """Return the report as one HTML document."""
    sides = _sides(report)
    info = next((side.info for _, side in sides if side.info), {})
    facts = {
        "model": report.model,
        "device": str(info.get("device", "")),
        "dtype": str(info.get("dtype", report.config.dtype)),
        "attention": str(info.get("attention", "")),
        "lengths": f"× {report.scale:g}",
        "seeds": ", ".join(map(str, report.seeds)),
        "commit": commit() or "",
        "torch": versions()["torch"] or "",
    }
    sections: list[Section] = [
        ValueBars(
            "Output tokens a second",
            [
                (f"{run.workload}, {name}", run.rate, f"{run.rate:,.0f} tok/s")
                for name, run in _fastest(report)
            ],
        ),
        ValueBars(
            "Seconds",
            [
                (f"{run.workload}, {name}", run.seconds, f"{run.seconds:.2f} s")
                for name, run in _fastest(report)
            ],
        ),
        TokenBars(
            "Tokens by source",
            [(f"{run.workload}, {name}", _tokens(run)) for name, run in _fastest(report)],
        ),
        Rows("Seconds and output tokens a second", HEADER, report.rows()),
        Rows(
            "Every run",
            ("way", "workload", "seed", "seconds", "requests", "tok/s", "steps", "retractions"),
            [
                (
                    name,
                    run.workload,
                    str(run.seed),
                    f"{run.seconds:.2f}",
                    f"{run.requests:,}",
                    f"{run.rate:,.0f}",
                    f"{run.counters.get('steps', 0):,}",
                    f"{run.counters.get('retractions', 0):,}",
                )
                for name, side in sides
                for run in side.runs
            ],
        ),
    ]
    return render(f"{report.model}: benchmark", {k: v for k, v in facts.items() if v}, sections)


def _sides(report: Report) -> list[tuple[str, Side]]:
    named = (("in process", report.engine), ("through the server", report.server))
    return [(name, side) for name, side in named if side is not None]


def _fastest(report: Report) -> Iterator[tuple[str, Measurement]]:
    """Yield the best runs, those of one workload beside each other."""
    sides = [(name, best(side.runs)) for name, side in _sides(report)]
    for workload in dict.fromkeys(workload for _, runs in sides for workload in runs):
        for name, runs in sides:
            if workload in runs:
                yield name, runs[workload]


def _tokens(run: Measurement) -> dict[str, float]:
    cached = run.counters.get("cached_tokens", 0)
    computed = run.counters.get("computed_tokens", run.prompt_tokens - cached)
    return {"cached": cached, "computed": computed, "generated": run.output_tokens}
