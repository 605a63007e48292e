"""What a program cost a runtime, and what it has to cost at least."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import radixrt as rt
from radixrt.runtime.tokenizer import Tokenizer

MODEL = Path(rt.__file__).parent / "models" / "nano"


@dataclass(frozen=True)
class Measured:
    """One evaluation of a program; tokens are prompt tokens of all its calls."""

    accuracy: float
    num_rows: int
    seconds: float
    asked_tokens: int
    cached_tokens: int
    computed_tokens: int

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.asked_tokens

    @property
    def ms_a_row(self) -> float:
        return 1000 * self.seconds / self.num_rows


def measure(backend: rt.Backend, evaluate: Callable[[], tuple[float, list[Any]]]) -> Measured:
    """Run an example's ``evaluate`` and read off the runtime's counters what it took."""
    before = idle_counters(backend)
    start = time.perf_counter()
    accuracy, states = evaluate()
    seconds = time.perf_counter() - start
    after = idle_counters(backend)
    asked, cached, computed = (
        after[name] - before[name] for name in ("prompt_tokens", "cached_tokens", "computed_tokens")
    )
    return Measured(accuracy, len(states), seconds, asked, cached, computed)


def idle_counters(backend: rt.Backend, timeout_s: float = 10.0) -> dict[str, Any]:
    """Return the counters once no call runs: a call that a stop string ended is counted last."""
    deadline = time.monotonic() + timeout_s
    while True:
        info = backend.get_server_info()
        if info["running"] == info["waiting"] == 0:
            return info
        if time.monotonic() > deadline:
            raise TimeoutError(f"calls still run after {timeout_s} s")
        time.sleep(0.01)


def token_ids(prompts: Iterable[str]) -> list[list[int]]:
    """Return the token ids of prompts that are one piece of text each, as the runtime does."""
    tokenizer = Tokenizer(MODEL)
    start = tokenizer.start_ids.tolist()
    return [start + tokenizer.encode(prompt, at_start=True).tolist() for prompt in prompts]


def num_distinct_prefix_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Return the number of nodes of the prompts' trie: no cache can compute fewer tokens.

    Of two neighbours in sorted order, the later one adds what follows their common prefix.
    """
    ordered = sorted(map(tuple, prompts))
    return sum(
        len(prompt) - _common(before, prompt)
        for before, prompt in itertools.pairwise([(), *ordered])
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return sum(1 for _ in same)
