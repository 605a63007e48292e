"""The few-shot evaluation with the cache on and off, and what it computed against the least.

    python benchmarks/few_shot.py [--rows 160] [--shots 50] [--runs 5] [--off-runs 3]

Both runtimes run in this process, one after the other, on the model that ships. Every run with the
cache on begins with an empty one. ``distinct prefix tokens`` are the nodes of the trie of all
prompts' token ids: what has to be computed at least.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import few_shot  # noqa: E402
from measure import Measured, measure, num_distinct_prefix_tokens, token_ids  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import radixrt as rt  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--shots", type=int, default=50)
    parser.add_argument("--runs", type=int, default=5, help="runs with the cache on")
    parser.add_argument("--off-runs", type=int, default=3, help="runs with the cache off")
    args = parser.parse_args()
    batch = few_shot.rows(args.rows, args.shots)
    prompts = token_ids(row["shots"] + row["question"] for row in batch)
    num_distinct = num_distinct_prefix_tokens(prompts)
    on = runs(batch, args.runs, cache=True)
    off = runs(batch, args.off_runs, cache=False)
    num_asked = sum(map(len, prompts))
    assert {m.asked_tokens for m in on + off} == {num_asked}, "prompts are counted otherwise"
    print(f"{len(batch)} rows of {args.shots} shots: {num_asked:,} prompt tokens")
    print(f"{num_distinct:,} distinct prefix tokens")
    table = Table()
    for column in ("cache", "runs", "accuracy", "computed", "of distinct", "s", "rows/s"):
        table.add_column(column, justify="right")
    for name, measured in (("on", on), ("off", off)):
        computed = statistics.median(m.computed_tokens for m in measured)
        table.add_row(
            name,
            f"{len(measured)}",
            f"{min(m.accuracy for m in measured):.3f}",
            f"{computed:,.0f}",
            f"{computed / num_distinct:.3f}",
            f"{seconds(measured):.2f}",
            f"{len(batch) / seconds(measured):.1f}",
        )
    Console().print(table)
    print(f"cache on / off: {seconds(off) / seconds(on):.1f} times the throughput (medians)")


def runs(batch: list[dict[str, str]], num_runs: int, *, cache: bool) -> list[Measured]:
    """Measure ``num_runs`` evaluations after one small one that warms everything but the cache."""
    measured = []
    with rt.Runtime(cache=cache) as backend:
        few_shot.evaluate(backend, few_shot.rows(4, 4))
        for _ in range(num_runs):
            backend.flush_cache()
            measured.append(measure(backend, lambda: few_shot.evaluate(backend, batch)))
    return measured


def seconds(measured: list[Measured]) -> float:
    return statistics.median(m.seconds for m in measured)


if __name__ == "__main__":
    main()
