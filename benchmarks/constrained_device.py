"""What a device loses to constraints: a batch of JSON generations against the same batch without.

    python benchmarks/constrained_device.py --tokenizer TOKENIZER_JSON [--forward-ms 7.5]

There is no device, and time is counted, not measured, so that neighbours on the machine do not
matter: the host's is the processor time of the loop's thread, and where that waits for masks, what
filling them took of the processors, divided by ``--mask-threads``. A forward takes ``--forward-ms``
after whatever was queued before it, sampling ``--sample-ms``. Planning attention and replaying a
graph are not done; ``--launch-ms`` of the host's time stand for them. A step is launched while the
one before it runs, as on a GPU.

Rows sample any token that their mask allows: text as random as that of a model with random weights,
under which masks cost most. Every constrained batch is followed by one without constraints that
generates as many tokens a row. Prints medians over the rounds, in milliseconds; ``idle`` is how
long the device had nothing to do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from constrained_throughput import RECORD
from host_constrained import Load, build
from numpy.typing import NDArray

from radixrt.runtime.engine.loop import EngineLoop
from radixrt.runtime.forward.engine import Engine, StepInFlight
from radixrt.runtime.grammar.vocabulary import allowed_ids, bit_of
from radixrt.runtime.scheduling.masks import Filling, MaskFiller, Masks
from radixrt.runtime.scheduling.plan import Plan, StepResult
from radixrt.runtime.scheduling.request import Request
from radixrt.runtime.scheduling.slots import SlotTable
from radixrt.runtime.wire import GrammarSpec

MAX_TOKENS = 400

NUM_CONTROL = 1_000
"""Tokens at the beginning of the vocabulary that spell no text."""


class NoOps:
    """Operations that take no time."""

    name = "none"

    def copy_pages(self, *arguments: Any) -> None:
        pass

    def apply_token_mask(self, logits: torch.Tensor, bitmask: torch.Tensor) -> None:
        pass

    def sample(self, logits: torch.Tensor, rows: Any) -> torch.Tensor:
        return torch.zeros(len(logits), dtype=torch.int64)


class HostClock:
    """The time of the loop's thread, in seconds: what it computes, and waits for."""

    def __init__(self) -> None:
        self._waited = 0.0

    def now(self) -> float:
        return time.thread_time() + self._waited

    def wait_until(self, when: float) -> None:
        self._waited += max(0.0, when - self.now())

    def work(self, seconds: float) -> None:
        self._waited += seconds

    def sleep(self, seconds: float) -> None:
        began = time.perf_counter()
        time.sleep(seconds)
        self.work(time.perf_counter() - began)


class TimedFiller(MaskFiller):
    """Fills masks at once, and says when threads would be done."""

    num_threads = 4

    def __init__(self, slots: SlotTable, vocab_size: int, clock: HostClock) -> None:
        super().__init__(slots, vocab_size)
        self._clock = clock
        self._ready = 0.0

    def begin(self, plan: Plan, at_once: int = 0) -> Filling | None:
        filling = super().begin(plan, at_once)
        if filling is not None:
            here, everywhere = time.thread_time(), time.process_time()
            if filling.future is not None:
                filling.future.result()
            elsewhere = time.process_time() - everywhere - (time.thread_time() - here)
            self._ready = self._clock.now() + elsewhere / self.num_threads
        return filling

    def finish(self, filling: Filling | None, fail: Callable[[Request, str], None]) -> Masks | None:
        if filling is not None:
            self._clock.wait_until(self._ready)
        return super().finish(filling, fail)


class TimedEngine(Engine):
    """Says when a device would be done that computes one thing after another."""

    forward_s = sample_s = launch_s = idle_s = 0.0

    def begin(self, clock: HostClock) -> None:
        """Start with a device that has just become free."""
        self.clock = clock
        self._free, self.idle_s = clock.now(), 0.0
        self._sampled: dict[int, tuple[Masks | None, float]] = {}
        self._rng = np.random.default_rng(0)

    def launch(self, plan: Plan) -> StepInFlight:
        step = super().launch(plan)
        self.clock.work(self.launch_s)
        self._work(self.forward_s)
        return step

    def sample(self, step: StepInFlight, masks: Masks | None) -> None:
        super().sample(step, masks)
        self._work(self.sample_s)
        self._sampled[id(step)] = masks, self._free

    def read(self, step: StepInFlight) -> StepResult:
        super().read(step)
        masks, done = self._sampled.pop(id(step))
        self.clock.wait_until(done)
        began = self.clock.now()
        ids = self._choose(len(step.plan.sample_rows), masks)
        self.clock.work(began - self.clock.now())  # the device's work
        return StepResult(ids, {}, [], [])

    def _work(self, seconds: float) -> None:
        now = self.clock.now()
        self.idle_s += max(0.0, now - self._free)
        self._free = max(now, self._free) + seconds

    def _choose(self, num_rows: int, masks: Masks | None) -> list[int]:
        vocab_size = self.model.vocab_size  # type: ignore[attr-defined]
        ids: list[int] = self._rng.integers(NUM_CONTROL, vocab_size, num_rows).tolist()
        if masks is not None:
            for row, mask in zip(masks.rows.tolist(), masks.bitmask, strict=True):
                ids[row] = self._allowed(mask, ids[row])
        return ids

    def _allowed(self, mask: NDArray[np.int32], token_id: int) -> int:
        """Return a token if it is allowed, else one that is."""
        if bit_of(mask, token_id):
            return token_id
        words = np.flatnonzero(mask)
        word = int(self._rng.choice(words))
        bits = allowed_ids(mask[word : word + 1], 32)
        return 32 * word + int(self._rng.choice(bits))


def batch(
    loop: EngineLoop, load: Load, grammar: GrammarSpec | None, limits: list[int], end: int | None
) -> tuple[float, float, int]:
    """Return the milliseconds of a batch, those that the device waited, and the steps."""
    engine, metrics = loop.engine, loop.scheduler.metrics
    assert isinstance(engine, TimedEngine)
    load.completions.clear()
    steps, clock = metrics.steps, engine.clock
    engine.begin(clock)
    began = clock.now()
    load.begin(grammar, limits, end)
    while load.num_open:
        loop.step()
        if load.failures:
            raise SystemExit(f"failed: {load.failures[0]}")
    return (clock.now() - began) * 1e3, engine.idle_s * 1e3, metrics.steps - steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--end-id", type=int, default=2)
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forward-ms", type=float, default=7.5)
    parser.add_argument("--sample-ms", type=float, default=0.15)
    parser.add_argument("--launch-ms", type=float, default=1.5)
    parser.add_argument("--mask-threads", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    end, n = arguments.end_id, arguments.running
    loop, load = build(arguments.tokenizer, n, end, TimedEngine, overlap=1)
    engine = loop.engine
    assert isinstance(engine, TimedEngine)
    clock = HostClock()
    engine.begin(clock)
    load.sleep = clock.sleep
    loop._masks = TimedFiller(loop.scheduler.slots, engine.model.vocab_size, clock)  # type: ignore
    loop._masks.num_threads = arguments.mask_threads
    engine.model._logits = torch.zeros(n + 64, 1)  # type: ignore[attr-defined]
    engine.ops = NoOps()  # type: ignore[assignment]
    engine.forward_s = arguments.forward_ms / 1e3
    engine.sample_s = arguments.sample_ms / 1e3
    engine.launch_s = arguments.launch_ms / 1e3
    schema = json.dumps(RECORD)
    cases = {
        "constrained": GrammarSpec("json_schema", schema, finish="valid", jump_forward=False),
        "jump-forward": GrammarSpec("json_schema", schema, finish="valid"),
    }
    print(
        f"{'':14}{'ms':>9}{'idle':>8}{'steps':>7}{'free ms':>10}{'idle':>8}{'steps':>7}{'ratio':>8}"
    )
    for name, grammar in cases.items():
        batch(loop, load, grammar, [MAX_TOKENS] * n, end)  # compiled, and templates for all rows
        rows = []
        for _ in range(arguments.rounds):
            mine = batch(loop, load, grammar, [MAX_TOKENS] * n, end)
            free = batch(loop, load, None, [*load.completions], None)
            rows.append((*mine, *free, free[0] / mine[0]))
        found = [statistics.median(column) for column in zip(*rows, strict=True)]
        print(
            f"{name:14}{found[0]:9.1f}{found[1]:8.1f}{found[2]:7.0f}"
            f"{found[3]:10.1f}{found[4]:8.1f}{found[5]:7.0f}{found[6]:8.3f}"
        )
    loop.calls.close()


if __name__ == "__main__":
    main()
