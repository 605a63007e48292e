"""`make demo`: three programs on a server process, with a cold, a warm and no cache.

Prints one table and the address of the page on which the tree that they left is seen; on a terminal
it stays there until Ctrl-C. Exits with 1 and a sentence for each thing that is not as it should be.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import few_shot
import react_agent
import tree_of_thought
from measure import Measured, measure, num_distinct_prefix_tokens, token_ids
from rich.console import Console
from rich.table import Table

import radixrt as rt

READY_S = 120.0
FEW_SHOT_ROWS, FEW_SHOT_ROWS_OFF = 160, 16
"""Rows with the cache, and without it, where a part shows the rate."""
NUM_PROBLEMS = NUM_PUZZLES = 16


@dataclass(frozen=True)
class Results:
    """A program's evaluations."""

    cold: Measured
    warm: Measured
    off: Measured

    @property
    def speedup(self) -> float:
        return self.off.ms_a_row / self.cold.ms_a_row


@contextlib.contextmanager
def serving(*options: str, on_page: Callable[[str], None] | None = None) -> Iterator[rt.Backend]:
    """A session with a server process that ends with the block, whatever happens in it. With
    ``on_page`` it has a page, whose address is told."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        endpoint, ready = f"ipc://{directory}/runtime.sock", directory / "ready"
        command = [sys.executable, "-m", "radixrt.runtime", "--endpoint", endpoint]
        command += ["--port", "0"] if on_page else ["--no-http"]
        command += ["--ready-file", str(ready), *options]
        with (directory / "log").open("w+") as log:
            # In a session of its own, so that Ctrl-C reaches this process alone.
            process = subprocess.Popen(
                command,
                cwd=Path(rt.__file__).parents[1],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                await_ready(process, ready, directory / "log")
                if on_page is not None:
                    on_page(ready.read_text(encoding="utf-8").split()[1] + "/")
                with rt.connect(endpoint) as backend:
                    yield backend
            finally:
                end(process)


def await_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            end_of_log = log.read_text(encoding="utf-8")[-2000:]
            sys.exit(f"demo: the server did not become ready\n{end_of_log}")
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def evaluate(backend: rt.Backend, num_rows: int) -> list[Measured]:
    """Measure the three programs, the few-shot evaluation on ``num_rows``."""
    batch = few_shot.rows(num_rows)
    return [
        measure(backend, lambda: few_shot.evaluate(backend, batch)),
        measure(backend, lambda: react_agent.evaluate(backend, NUM_PROBLEMS)),
        measure(backend, lambda: tree_of_thought.evaluate(backend, NUM_PUZZLES)),
    ]


def run(backend: rt.Backend) -> tuple[list[Results], float]:
    """Return the results of the three programs, with a cache on ``backend`` and without one on a
    server of its own, and the share of puzzles solved greedily."""
    with serving("--no-cache") as without:
        few_shot.evaluate(without, few_shot.rows(4, 4))
        off = evaluate(without, FEW_SHOT_ROWS_OFF)
    few_shot.evaluate(backend, few_shot.rows(4, 4))  # the first run warms more than the cache
    backend.flush_cache()
    cold = evaluate(backend, FEW_SHOT_ROWS)
    warm = evaluate(backend, FEW_SHOT_ROWS)
    greedy, _ = tree_of_thought.evaluate(backend, NUM_PUZZLES, width=1)
    return [Results(*of_one) for of_one in zip(cold, warm, off, strict=True)], greedy


def table(results: list[Results], greedy: float, num_distinct: int) -> Table:
    shown = Table(
        title="Three programs, model nano; cold, warm and no cache (off)", title_justify="left"
    )
    shown.add_column()
    for program in ("few-shot evaluation", "agent", "tree of thought"):
        shown.add_column(program, justify="right")
    cold = [r.cold for r in results]
    shown.add_row("rows", *[f"{m.num_rows}" for m in cold])
    shown.add_row("accuracy", *[f"{m.accuracy:.3f}" for m in cold])
    shown.add_row("  by greedy steps", "", "", f"{greedy:.3f}", end_section=True)
    shown.add_row("prompt tokens asked", *[f"{m.asked_tokens:,}" for m in cold])
    shown.add_row("computed, cold", *[f"{m.computed_tokens:,}" for m in cold])
    shown.add_row("distinct prefix tokens", f"{num_distinct:,}", "", "")
    shown.add_row("computed, warm", *[f"{r.warm.computed_tokens:,}" for r in results])
    shown.add_row("hit rate, cold", *[f"{m.hit_rate:.1%}" for m in cold])
    shown.add_row("hit rate, warm", *[f"{r.warm.hit_rate:.1%}" for r in results], end_section=True)
    shown.add_row("seconds, cold", *[f"{m.seconds:.1f}" for m in cold])
    shown.add_row("seconds, warm", *[f"{r.warm.seconds:.1f}" for r in results])
    shown.add_row(
        "seconds, off (rows)", *[f"{r.off.seconds:.1f} ({r.off.num_rows})" for r in results]
    )
    shown.add_row("ms a row, cold", *[f"{m.ms_a_row:.0f}" for m in cold])
    shown.add_row("ms a row, warm", *[f"{r.warm.ms_a_row:.0f}" for r in results])
    shown.add_row("ms a row, off", *[f"{r.off.ms_a_row:.0f}" for r in results])
    shown.add_row("off / cold", *[f"{r.speedup:.1f}×" for r in results])
    return shown


def complaints(results: list[Results], greedy: float, num_distinct: int) -> list[str]:
    """Return a sentence for each thing that is not as it should be."""
    classify, agent, tree = results
    computed, warm = classify.cold.computed_tokens, classify.warm
    checks = [
        (
            classify.cold.accuracy >= 0.95,
            f"the few-shot accuracy is {classify.cold.accuracy:.3f}; it should be 0.95 or more",
        ),
        (
            agent.cold.accuracy >= 0.9,
            f"the agent's accuracy is {agent.cold.accuracy:.3f}; it should be 0.9 or more",
        ),
        (
            tree.cold.accuracy > greedy,
            f"the vote solved {tree.cold.accuracy:.3f} of the puzzles and greedy steps "
            f"{greedy:.3f}; the vote should solve more",
        ),
        (
            abs(computed - num_distinct) <= 0.02 * num_distinct,
            f"the few-shot evaluation computed {computed:,} tokens; its prompts have "
            f"{num_distinct:,} distinct prefix tokens, and 2 % more or less would be right",
        ),
        (
            warm.computed_tokens <= 2 * warm.num_rows,
            f"with a warm cache the few-shot evaluation computed {warm.computed_tokens:,} tokens; "
            f"one or two for each of its {warm.num_rows} rows would be right",
        ),
        (
            classify.off.cached_tokens == 0,
            f"{classify.off.cached_tokens:,} tokens came from a cache that was off",
        ),
        (
            classify.speedup >= 2,
            f"the few-shot evaluation is {classify.speedup:.1f} times as fast with the cache as "
            "without; 2 is the least on any machine, 4 and more is usual",
        ),
    ]
    return [sentence for is_right, sentence in checks if not is_right]


def main() -> None:
    # A terminated demo ends its servers as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    page: list[str] = []
    status = 130  # until there is a result
    try:
        with serving(on_page=page.append) as backend:
            print(f"watch the tree of prefixes grow: {page[0]}", flush=True)
            results, greedy = run(backend)
            status = show(results, greedy)
            print(f"the tree they left: {page[0]}", flush=True)
            if sys.stdout.isatty():
                print("Ctrl-C ends the server")
                signal.pause()
    except KeyboardInterrupt:
        pass
    sys.exit(status)


def show(results: list[Results], greedy: float) -> int:
    """Print the table and what is wrong; return the exit status."""
    prompts = [row["shots"] + row["question"] for row in few_shot.rows(FEW_SHOT_ROWS)]
    num_distinct = num_distinct_prefix_tokens(token_ids(prompts))
    Console().print(table(results, greedy, num_distinct))
    wrong = complaints(results, greedy, num_distinct)
    for sentence in wrong:
        print(f"demo: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
