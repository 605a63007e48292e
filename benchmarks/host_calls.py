"""Host cost of a call's beginning and end: 64 conversations take turns, with a model that computes
nothing.

    python benchmarks/host_calls.py [--prompts 1000 4000] [--running 64] [--profile]

All conversations send their next prompt at once (what they had, the reply, 40 new tokens), each
reply has 8 tokens. The cost of a call is the processor time of the loop's thread over a whole turn,
less what as many steps take in which nothing begins or ends, divided by the calls: reading the
message, ordering the queue, matching, pages, accounts, sharing, parking and the answer. Prints
microseconds, medians over the turns. ``--profile`` prints where the time goes instead (the profiler
itself makes everything slower).
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections import defaultdict

import numpy as np
import torch
from host_step import CPU, VOCAB_SIZE, NoAttention, NoModel, NoOps, _fields, fill_tree

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
from radixrt.runtime.wire import Done, FromEngine, Run, Step, ToEngine, TokenSampling, pack_ids

NEW_TOKENS = 40
REPLY_TOKENS = 8
SHARED_TOKENS = 400


class Turns:
    """The frontend's side: every branch's next call begins when all have ended."""

    def __init__(self, num_branches: int, prompt_len: int) -> None:
        self.inbox: list[ToEngine] = []
        self.num_open = 0
        self._rng = np.random.default_rng(0)
        self._num_calls = 0
        self._branch_of: dict[int, int] = {}
        system = self._tokens(SHARED_TOKENS)
        self._texts = [
            system + self._tokens(prompt_len - SHARED_TOKENS) for _ in range(num_branches)
        ]

    def begin(self) -> None:
        """Send the next prompt of every branch."""
        for branch, text in enumerate(self._texts):
            text += self._tokens(NEW_TOKENS)
            self._num_calls += 1
            self._branch_of[self._num_calls] = branch
            sampling = TokenSampling(**{**_fields(GREEDY), "max_tokens": REPLY_TOKENS})
            ids = pack_ids(np.array(text, np.int32))
            self.inbox.append(Run(self._num_calls, branch, ids, sampling))
        self.num_open = len(self._texts)

    def receive(self, timeout_s: float) -> list[ToEngine]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, messages: list[FromEngine]) -> None:
        for message in messages:
            if isinstance(message, Step):
                for sampled in message.sampled:
                    self._texts[self._branch_of[sampled.id]].extend(sampled.token_ids)
            elif isinstance(message, Done):
                self.num_open -= 1
            else:
                raise SystemExit(f"not an answer: {message}")

    def _tokens(self, num: int) -> list[int]:
        return self._rng.integers(0, VOCAB_SIZE, num).tolist()


def build(num_branches: int, prompt_len: int, num_turns: int, page_size: int, tree_pages: int):  # type: ignore[no-untyped-def]
    """Return a loop and what talks to it."""
    context = prompt_len + (num_turns + 1) * (NEW_TOKENS + REPLY_TOKENS) + 64
    num_pages = tree_pages + num_branches * (2 * context // page_size) + 1
    slots = SlotTable(num_branches, context, page_size)
    allocator = PageAllocator(num_pages)
    cache = RadixCache(allocator, page_size, policy=learned_policy(allocator.num_usable))
    fill_tree(cache, allocator, tree_pages)
    scheduler = Scheduler(
        slots, KvSpace(cache, allocator, slots), Limits(8192, num_branches + 64), Metrics()
    )
    pool = KvPool.zeros(1, 1, 1, 1, 1, dtype=torch.float32, device=CPU)
    engine = Engine(NoModel(num_branches + 64), pool, NoAttention(), NoOps(), slots, CPU)  # type: ignore[arg-type]
    calls = OpenCalls(scheduler, Capacity(context, num_pages * page_size, VOCAB_SIZE, 10_000))
    turns = Turns(num_branches, prompt_len)
    return EngineLoop(engine, scheduler, calls, turns, vocab_size=VOCAB_SIZE), turns


def turn(loop: EngineLoop, turns: Turns) -> tuple[float, int, float]:
    """Run one turn; return its seconds, its steps, and the median of those in the middle."""
    turns.begin()
    steps = []
    while turns.num_open:
        began = time.thread_time_ns()
        loop.step()
        steps.append((time.thread_time_ns() - began) / 1e9)
    return sum(steps), len(steps), float(np.median(steps[2:-2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--tree-pages", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--sort", default="tottime")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[int, list[float]] = defaultdict(list)
    plain: dict[int, list[float]] = defaultdict(list)
    for prompt_len in arguments.prompts:
        loop, turns = build(
            arguments.running,
            prompt_len,
            arguments.turns,
            arguments.page_size,
            arguments.tree_pages,
        )
        for _ in range(3):
            turn(loop, turns)
        if arguments.profile:
            profile = cProfile.Profile()
            profile.enable()
        for _ in range(arguments.turns - 3):
            seconds, num_steps, step = turn(loop, turns)
            found[prompt_len].append((seconds - num_steps * step) / arguments.running * 1e6)
            plain[prompt_len].append(step * 1e3)
        if arguments.profile:
            profile.disable()
            pstats.Stats(profile).sort_stats(arguments.sort).print_stats(70)
        print(
            f"prompts of {prompt_len:>6} tokens: {np.median(found[prompt_len]):7.0f} us a call "
            f"(quartiles {np.quantile(found[prompt_len], 0.25):.0f} and "
            f"{np.quantile(found[prompt_len], 0.75):.0f}), "
            f"{np.median(plain[prompt_len]):.3f} ms a step without any",
            flush=True,
        )


if __name__ == "__main__":
    main()
