"""A batch with a journal: a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from heldout import held_out, runtime, share

import radixrt as rt


@rt.function
def add(s, a, op, b):
    s += f"Question: What is {a} {op} {b}?\nAnswer: "
    s += rt.gen_int("answer", max_tokens=8, temperature=0)
    return s["answer"]


def interrupted(backend: rt.Backend, rows: list[dict[str, Any]], journal: Path) -> None:
    """Stop when half the rows are done; what still runs is cancelled, as by Ctrl-C."""
    results = add.run_batch(
        rows, backend=backend, journal=journal, generator_style=True, max_in_flight=4
    )
    for _ in range(len(rows) // 2):
        next(results)
    results.close()


def evaluate(backend: rt.Backend, journal: Path, count: int = 40) -> tuple[float, list[Any]]:
    items = held_out("arithmetic", count)
    rows = [{name: item[name] for name in ("a", "op", "b")} for item in items]
    interrupted(backend, rows, journal)
    results = add.run_batch(rows, backend=backend, journal=journal, resume=True)
    right = [r.ret_value == item["answer"] for r, item in zip(results, items, strict=True)]
    return share(right), results


if __name__ == "__main__":
    with runtime(__doc__) as backend, tempfile.TemporaryDirectory() as directory:
        journal = Path(directory) / "answers.jsonl"
        accuracy, results = evaluate(backend, journal)
        print(journal.read_text(encoding="utf-8").splitlines()[0])
        kept = sum(isinstance(result, rt.FinishedRow) for result in results)
        print(f"{kept} of {len(results)} rows came from the journal; accuracy {accuracy:.3f}")
