"""Host cost of an engine step: receive, schedule, batch build, commit, reply, with a model that
computes nothing.

Prints, for several numbers of running requests and sizes of the cache, the median of each phase.
Two loads: ``decode`` (every request generates) and ``churn`` (each finishes after 32 tokens, is
answered, and its branch's next call, with a longer prompt, takes its place).
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from radixrt.cache.learned import learned_policy
from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import RadixCache
from radixrt.runtime.engine.loop import EngineLoop
from radixrt.runtime.engine.open_calls import OpenCalls
from radixrt.runtime.engine.refusals import Capacity
from radixrt.runtime.forward.engine import Engine
from radixrt.runtime.scheduling.kv import KvPool, KvSpace
from radixrt.runtime.scheduling.metrics import Metrics
from radixrt.runtime.scheduling.request import GREEDY
from radixrt.runtime.scheduling.scheduler import Limits, Scheduler
from radixrt.runtime.scheduling.slots import SlotTable
from radixrt.runtime.wire import Done, FromEngine, Run, ToEngine, TokenSampling, pack_ids

PAGE_SIZE = 16
CONTEXT = 4096
PROMPT = 512
VOCAB_SIZE = 64
CPU = torch.device("cpu")


class NoModel:
    """Logits without a forward."""

    def __init__(self, num_rows: int) -> None:
        self._logits = torch.rand(num_rows, VOCAB_SIZE)

    def forward(self, batch: Any, k_cache: Any, v_cache: Any, attention: Any) -> torch.Tensor:
        return self._logits[: len(batch.logits_rows)]


class NoAttention:
    name = "none"

    def plan(self, batch: Any) -> None:
        pass

    def run(self, layer: int, query: Any, k_cache: Any, v_cache: Any) -> Any:
        raise NotImplementedError


class NoOps:
    name = "none"

    def copy_pages(self, *arguments: Any) -> None:
        pass

    def sample(self, logits: torch.Tensor, rows: Any) -> torch.Tensor:
        return logits.argmax(dim=-1)


class Load:
    """The frontend's side: keeps ``num_running`` branches busy."""

    def __init__(self, num_running: int, max_tokens: int) -> None:
        self.inbox: list[ToEngine] = []
        self._max_tokens = max_tokens
        self._branches: dict[int, tuple[int, list[int]]] = {}
        self._num_calls = 0
        self._rng = np.random.default_rng(0)
        for branch in range(num_running):
            self._start(branch, self._rng.integers(0, VOCAB_SIZE, PROMPT).tolist())

    def receive(self, timeout_s: float) -> list[ToEngine]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, messages: list[FromEngine]) -> None:
        for message in messages:
            if isinstance(message, Done):
                branch, prompt = self._branches.pop(message.id)
                grown = prompt + self._rng.integers(0, VOCAB_SIZE, 40).tolist()
                if len(grown) > CONTEXT // 2:
                    grown = self._rng.integers(0, VOCAB_SIZE, PROMPT).tolist()
                self._start(branch, grown)

    def _start(self, branch: int, prompt: list[int]) -> None:
        self._num_calls += 1
        self._branches[self._num_calls] = branch, prompt
        # Staggered at first, so that calls do not all end in one step.
        first = self._num_calls <= 512
        max_tokens = self._max_tokens - (branch % 31 if first and self._max_tokens < 64 else 0)
        sampling = TokenSampling(**{**_fields(GREEDY), "max_tokens": max_tokens})
        ids = pack_ids(np.array(prompt, np.int32))
        self.inbox.append(Run(self._num_calls, branch, ids, sampling))


def _fields(sampling: TokenSampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in sampling.__struct_fields__}


def build(
    num_running: int, tree_pages: int, max_tokens: int, eviction: str
) -> tuple[EngineLoop, Load]:
    num_pages = tree_pages + num_running * (CONTEXT // PAGE_SIZE) + 1
    slots = SlotTable(num_running, CONTEXT, PAGE_SIZE)
    allocator = PageAllocator(num_pages)
    policy = learned_policy(allocator.num_usable) if eviction == "learned" else None
    cache = RadixCache(allocator, PAGE_SIZE, policy=policy)
    fill_tree(cache, allocator, tree_pages)
    scheduler = Scheduler(
        slots,
        KvSpace(cache, allocator, slots),
        Limits(8192, num_running + 64),
        Metrics(),
    )
    pool = KvPool.zeros(1, 1, 1, 1, 1, dtype=torch.float32, device=CPU)
    engine = Engine(NoModel(num_running + 64), pool, NoAttention(), NoOps(), slots, CPU)  # type: ignore[arg-type]
    calls = OpenCalls(scheduler, Capacity(CONTEXT, num_pages * PAGE_SIZE, VOCAB_SIZE, 10_000))
    load = Load(num_running, max_tokens)
    return EngineLoop(engine, scheduler, calls, load, vocab_size=VOCAB_SIZE), load


def fill_tree(cache: RadixCache, allocator: PageAllocator, num_pages: int) -> None:
    """Insert ``num_pages`` pages as leaves of ten pages each, under ten thousand shared pages."""
    rng = np.random.default_rng(1)
    leaf = 10 * PAGE_SIZE
    for _ in range(num_pages // 10):
        token_ids = rng.integers(0, 50_000, leaf).astype(np.int32)
        lease = cache.acquire("other", token_ids)
        allocator.give(lease.extend(token_ids, allocator.take(10)).duplicates)
        lease.release()


def measure(loop: EngineLoop, num_warm: int, num_steps: int) -> dict[str, float]:
    """Return the median milliseconds of each phase over ``num_steps`` steps."""
    spent: dict[str, float] = defaultdict(float)
    phases: dict[str, list[float]] = defaultdict(list)

    def timed(owner: Any, method: str, phase: str) -> None:
        inner: Callable[..., Any] = getattr(owner, method)

        def run(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*arguments, **options)
            finally:
                spent[phase] += time.perf_counter() - started

        setattr(owner, method, run)

    timed(loop.channel, "receive", "client")
    timed(loop.channel, "send", "client")
    timed(loop.scheduler, "schedule", "schedule")
    timed(loop.engine, "launch", "build")
    timed(loop.engine, "sample", "sample")
    timed(loop.engine, "read", "read")
    timed(loop.scheduler, "commit", "commit")
    timed(loop.scheduler, "settle", "settle")
    for step in range(num_warm + num_steps):
        spent.clear()
        started = time.perf_counter()
        loop.step()
        total = time.perf_counter() - started - spent["client"]
        if step < num_warm:
            continue
        known = sum(value for phase, value in spent.items() if phase != "client")
        phases["total"].append(total)
        phases["other"].append(total - known)
        for phase in ("schedule", "build", "sample", "read", "commit", "settle"):
            phases[phase].append(spent[phase])
    medians = {phase: float(np.median(values)) * 1e3 for phase, values in phases.items()}
    medians["p99"] = float(np.quantile(phases["total"], 0.99)) * 1e3
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--running", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--tree-pages", type=int, nargs="+", default=[0, 1_000_000])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--eviction", choices=["learned", "lru"], default="learned")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("schedule", "build", "sample", "read", "commit", "settle", "other", "total", "p99")
    print("host cost of a step in ms, medians of", arguments.steps, "steps")
    print(f"{'running':>8}{'tree pages':>12}{'load':>8}" + "".join(f"{c:>10}" for c in columns))
    for tree_pages in arguments.tree_pages:
        for num_running in arguments.running:
            for load, max_tokens in (("decode", CONTEXT - PROMPT), ("churn", 32)):
                loop, _ = build(num_running, tree_pages, max_tokens, arguments.eviction)
                num_warm = 2 * num_running * PROMPT // 8192 + 40
                found = measure(loop, num_warm, arguments.steps)
                print(
                    f"{num_running:>8}{tree_pages:>12,}{load:>8}"
                    + "".join(f"{found[column]:>10.3f}" for column in columns),
                    flush=True,
                )


if __name__ == "__main__":
    main()
