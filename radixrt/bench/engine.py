"""The engine without frontend and socket, driven on this thread.

``python -m radixrt.bench.engine`` reads a ``Job`` from standard input and writes one JSON line an
event to standard output: how far the start is, then every measurement. A process of its own, so
that its start is a cold one and the device's memory is free again when it has ended.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any

import msgspec
import numpy as np

from radixrt.bench.measure import measure
from radixrt.bench.workloads import Prompts
from radixrt.config import RuntimeConfig
from radixrt.errors import RadixError, failure
from radixrt.runtime.channel import LocalEngineChannel
from radixrt.runtime.engine.assemble import build_loop
from radixrt.runtime.scheduling.request import GREEDY
from radixrt.runtime.serving.supervisor import load_config
from radixrt.runtime.wire import (
    Abort,
    Done,
    EngineFailed,
    EngineReply,
    FlushCache,
    FromEngine,
    Progress,
    QueryStats,
    Ready,
    Release,
    Run,
    Step,
    TokenSampling,
    pack_ids,
)


class Job(msgspec.Struct, frozen=True):
    """What the process measures; ``config`` is ``dump_config``'s."""

    config: msgspec.Raw
    workloads: tuple[str, ...]
    seeds: tuple[int, ...]
    scale: float


class EngineDriver:
    """Drives an engine loop on this thread.

    ``info`` is what the engine says of itself, ``phases`` when each part of its start began
    (seconds of ``time.perf_counter``).
    """

    def __init__(self, config: RuntimeConfig) -> None:
        self.channel = LocalEngineChannel(self._take)
        self.info: dict[str, Any] = {}
        self.vocab_size = 0
        self.phases: list[tuple[str, float]] = []
        self._outputs: dict[int, list[int]] = {}
        self._open: set[int] = set()
        self._leases: list[int] = []
        self._reply: dict[str, Any] | None = None
        self._next_id = 1
        self.loop = build_loop(config, self.channel)

    def submit(self, runs: list[Run]) -> range:
        """Send calls, under ids of their own, and return those."""
        calls = range(self._next_id, self._next_id + len(runs))
        self._next_id += len(runs)
        self._outputs = {call: [] for call in calls}
        self._open = set(calls)
        self._leases += calls
        self.channel.put(
            [
                msgspec.structs.replace(run, id=call, branch=call)
                for call, run in zip(calls, runs, strict=True)
            ]
        )
        return calls

    def cancel(self) -> None:
        """End what runs."""
        self.channel.put([Abort(call) for call in self._open])
        self._finish()

    def generate(self, prompts: Prompts, max_new: list[int]) -> Prompts:
        """Run all prompts to their end and return what was generated. Raises ``CallFailed``."""
        calls = self.submit(
            [
                Run(0, 0, pack_ids(np.array(prompt, np.int32)), greedy(limit))
                for prompt, limit in zip(prompts, max_new, strict=True)
            ]
        )
        self._finish()
        for call, limit in zip(calls, max_new, strict=True):
            assert len(self._outputs[call]) == limit
        return list(self._outputs.values())

    def flush(self) -> None:
        """Empty the cache."""
        self.channel.put([Release(tuple(self._leases))])
        self._leases = []
        self._ask(FlushCache(0))

    def stats(self) -> dict[str, Any]:
        """Return the engine's counters."""
        return self._ask(QueryStats(0))

    def _finish(self) -> None:
        while self._open:
            self.loop.step()

    def _ask(self, question: FlushCache | QueryStats) -> dict[str, Any]:
        self._reply = None
        self.channel.put([question])
        while self._reply is None:
            self.loop.step()
        return self._reply

    def _take(self, messages: list[FromEngine]) -> None:
        for message in messages:
            match message:
                case Step(sampled=sampled):
                    for item in sampled:
                        self._outputs[item.id] += item.token_ids
                case Done(id=call) | EngineFailed(id=int(call), code="cancelled"):
                    self._open.discard(call)
                case EngineFailed(code=code, message=text):
                    raise failure(code, text)
                case EngineReply(data=data):
                    self._reply = data
                case Progress(phase=phase):
                    self.phases.append((phase, time.perf_counter()))
                case Ready(info=info, vocab_size=vocab_size):
                    self.info = info
                    self.vocab_size = vocab_size
                    self.phases.append(("ready", time.perf_counter()))


def greedy(max_tokens: int) -> TokenSampling:
    """Return greedy sampling of exactly ``max_tokens`` tokens."""
    return msgspec.structs.replace(GREEDY, max_tokens=max_tokens)


def main() -> int:
    """Measure the job on standard input; return the exit code."""
    # Libraries print to standard output; from here on that is standard error, and ours alone this.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**event: Any) -> None:
        print(json.dumps(event, default=str), file=events, flush=True)

    try:
        job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
        driver = EngineDriver(load_config(bytes(job.config)))
        gc.freeze()  # as the engine's process of a server does
        driver.generate([[1]], [1])
        tell(event="first token", info=driver.info)
        for workload in job.workloads:
            for seed in job.seeds:
                run = measure(driver, workload, seed, job.scale)
                tell(event="run", run=msgspec.to_builtins(run))
    except RadixError as error:
        tell(event="failed", message=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
