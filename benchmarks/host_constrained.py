"""Host cost of constrained rows, with a model that computes nothing: of a step of 64 rows under a
JSON schema and without, and of the start of 64 constrained calls.

    python benchmarks/host_constrained.py --tokenizer TOKENIZER_JSON [--running 64] [--profile]

Rows sample letters where letters are allowed, so they stay in the strings of a record and few of
them end. The cost of a row is the processor time of the loop's thread in a step, less that of the
same step unconstrained, divided by the rows; masks are filled by other threads and not in it. The
cost of a start is that of the step in which all calls begin, divided by the calls, less that of
unconstrained ones. ``tight``: so few tokens are left that ways to the end have to be known.
Prints microseconds, medians.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from host_step import CPU, NoAttention, _fields
from tokenizers import Tokenizer

from radixrt.cache.learned import learned_policy
from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import RadixCache
from radixrt.runtime.engine.loop import EngineLoop
from radixrt.runtime.engine.open_calls import OpenCalls
from radixrt.runtime.engine.refusals import Capacity
from radixrt.runtime.forward.engine import Engine
from radixrt.runtime.grammar.judges import Judges
from radixrt.runtime.grammar.llguidance import LlguidanceEngine
from radixrt.runtime.grammar.service import GrammarService
from radixrt.runtime.scheduling.kv import KvPool, KvSpace
from radixrt.runtime.scheduling.metrics import Metrics
from radixrt.runtime.scheduling.request import GREEDY
from radixrt.runtime.scheduling.scheduler import Limits, Scheduler
from radixrt.runtime.scheduling.slots import SlotTable
from radixrt.runtime.wire import (
    Abort,
    Done,
    EngineFailed,
    FromEngine,
    GrammarSpec,
    Run,
    ToEngine,
    TokenSampling,
    pack_ids,
)

PAGE_SIZE = 16
PROMPT = 64
CONTEXT = 4096

RECORD = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "rating": {"type": "integer", "minimum": 0, "maximum": 100},
        "text": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
    },
    "required": ["title", "rating", "text", "tags"],
    "additionalProperties": False,
}


class NoModel:
    """Logits without a forward; the vocabulary is as wide as asked for."""

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        self._logits = torch.zeros(num_rows, vocab_size)
        self.vocab_size = vocab_size

    def forward(self, batch: Any, k_cache: Any, v_cache: Any, attention: Any) -> torch.Tensor:
        return self._logits[: len(batch.logits_rows)]


class MaskedOps:
    """Samples among allowed tokens, at no cost that counts: a letter where one is allowed."""

    name = "none"

    def __init__(self, letters: list[int], num_rows: int) -> None:
        self._letters = np.array(letters)
        self._mask: np.ndarray[Any, Any] | None = None
        self._rng = np.random.default_rng(0)

    def copy_pages(self, *arguments: Any) -> None:
        pass

    def apply_token_mask(self, logits: torch.Tensor, bitmask: torch.Tensor) -> None:
        self._mask = bitmask.numpy()

    def sample(self, logits: torch.Tensor, rows: Any) -> torch.Tensor:
        n = len(logits)
        ids = self._rng.choice(self._letters, n)
        mask, self._mask = self._mask, None
        if mask is None:
            return torch.from_numpy(ids)
        allowed = (mask[np.arange(n), ids >> 5] >> (ids & 31)) & 1
        for row in np.flatnonzero(allowed == 0).tolist():
            word = int(np.flatnonzero(mask[row])[0])
            bits = int(mask[row, word]) & 0xFFFFFFFF
            ids[row] = 32 * word + (bits & -bits).bit_length() - 1
        return torch.from_numpy(ids)


class Load:
    """The frontend's side: begins batches of calls."""

    def __init__(self, num_rows: int) -> None:
        self.inbox: list[ToEngine] = []
        self.num_rows = num_rows
        self.num_open = 0
        self.sleep: Callable[[float], None] = time.sleep
        self.failures: list[str] = []
        self.completions: list[int] = []
        self._num_calls = 0
        self._rng = np.random.default_rng(0)

    def begin(
        self, grammar: GrammarSpec | None, max_tokens: int | list[int], end: int | None
    ) -> None:
        """Send one call for every row, of so many tokens each or up to the token ``end``."""
        limits = max_tokens if isinstance(max_tokens, list) else [max_tokens] * self.num_rows
        for limit in limits:
            sampling = TokenSampling(
                **{
                    **_fields(GREEDY),
                    "max_tokens": limit,
                    "stop_token_ids": () if end is None else (end,),
                }
            )
            self._num_calls += 1
            prompt = pack_ids(self._rng.integers(1000, 2000, PROMPT).astype(np.int32))
            self.inbox.append(Run(self._num_calls, self._num_calls, prompt, sampling, grammar))
        self.num_open += self.num_rows

    def stop(self) -> None:
        """Abort what runs."""
        first = self._num_calls - self.num_rows + 1
        self.inbox += [Abort(call) for call in range(first, self._num_calls + 1)]

    def receive(self, timeout_s: float) -> list[ToEngine]:
        if timeout_s and not self.inbox:
            self.sleep(min(timeout_s, 0.001))
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, messages: list[FromEngine]) -> None:
        for message in messages:
            self.num_open -= isinstance(message, Done | EngineFailed)
            if isinstance(message, EngineFailed):
                self.failures.append(message.message)
            elif isinstance(message, Done):
                self.completions.append(message.usage.completion)


def build(
    tokenizer: Path, num_rows: int, end: int, kind: type[Engine] = Engine, overlap: int = 0
) -> tuple[EngineLoop, Load]:
    """Return a loop over an engine of a ``kind``, and what talks to it."""
    vocab = Tokenizer.from_file(str(tokenizer))
    vocab_size = vocab.get_vocab_size(with_added_tokens=True)
    num_pages = num_rows * (CONTEXT // PAGE_SIZE) + 1
    slots = SlotTable(num_rows, CONTEXT, PAGE_SIZE)
    allocator = PageAllocator(num_pages)
    cache = RadixCache(allocator, PAGE_SIZE, policy=learned_policy(allocator.num_usable))
    scheduler = Scheduler(
        slots, KvSpace(cache, allocator, slots), Limits(8192, num_rows + 64), Metrics()
    )
    pool = KvPool.zeros(1, 1, 1, 1, 1, dtype=torch.float32, device=CPU)
    letters = [vocab.encode(letter, add_special_tokens=False).ids[-1] for letter in "abcdefgh"]
    engine = kind(
        NoModel(num_rows + 64, vocab_size),
        pool,
        NoAttention(),  # type: ignore[arg-type]
        MaskedOps(letters, num_rows),  # type: ignore[arg-type]
        slots,
        CPU,
    )
    judges = Judges(tokenizer, vocab_size, (end,))
    grammars = GrammarService(lambda: LlguidanceEngine(tokenizer, vocab_size, [end]), judges=judges)
    capacity = Capacity(CONTEXT, num_pages * PAGE_SIZE, vocab_size, 10_000)
    calls = OpenCalls(scheduler, capacity, grammars=grammars)
    load = Load(num_rows)
    loop = EngineLoop(engine, scheduler, calls, load, vocab_size=vocab_size, overlap=overlap)
    return loop, load


def measure(
    loop: EngineLoop, load: Load, grammar: GrammarSpec | None, max_tokens: int, end: int
) -> tuple[float, float, float]:
    """Return the milliseconds of the loop's thread from the first message to the first tokens, and
    those of a step after that, median and longest."""
    load.begin(grammar, max_tokens, end)
    began = time.thread_time_ns()
    while loop.scheduler.slots.num_active < load.num_rows or loop.scheduler.metrics.steps == 0:
        loop.step()
    first = time.thread_time_ns() - began
    steps = []
    for _ in range(min(max_tokens - 30, 150)):
        began = time.thread_time_ns()
        loop.step()
        steps.append(time.thread_time_ns() - began)
        if load.num_open < load.num_rows:
            break
    load.stop()
    while load.num_open:
        loop.step()
    return first / 1e6, float(np.median(steps)) / 1e6, max(steps) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--end-id", type=int, default=2)
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    end, n = arguments.end_id, arguments.running
    loop, load = build(arguments.tokenizer, n, end)
    schema = json.dumps(RECORD)
    cases = {
        "unconstrained": (None, 1000),
        "constrained": (GrammarSpec("json_schema", schema, finish="valid"), 1000),
        "constrained, cut": (GrammarSpec("json_schema", schema, finish="cut"), 1000),
        "constrained, tight": (GrammarSpec("json_schema", schema, finish="valid"), 90),
    }
    for grammar, tokens in cases.values():
        measure(loop, load, grammar, tokens, end)
    profile = cProfile.Profile() if arguments.profile else None
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
    for _ in range(arguments.rounds):
        for name, (grammar, tokens) in cases.items():
            if profile is not None and name == "constrained":
                profile.enable()
            found[name].append(measure(loop, load, grammar, tokens, end))
            if profile is not None:
                profile.disable()
    medians = {name: np.median(rounds, axis=0) for name, rounds in found.items()}
    plain = medians["unconstrained"]
    print(
        f"{'':24}{'first ms':>10}{'step ms':>10}{'longest':>10}{'us a start':>12}{'us a row':>10}"
    )
    for name, (first, step, longest) in medians.items():
        print(
            f"{name:24}{first:10.2f}{step:10.3f}{longest:10.2f}"
            f"{(first - plain[0]) / n * 1e3:12.1f}{(step - plain[1]) / n * 1e3:10.1f}"
        )
    loop.calls.close()
    if load.failures:
        print(len(load.failures), "failed:", load.failures[0])
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)


if __name__ == "__main__":
    main()
