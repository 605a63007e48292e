"""The five workloads on the engine in this process: no frontend, no socket.

    python benchmarks/engine_workloads.py MODEL_DIR|llama-3.1-8b [--only tree,batch]

``llama-3.1-8b`` is that model's shape with random weights. Every workload starts with an empty
cache; the better of two runs (seeds 0 and 100) counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from workloads import WORKLOADS, Prompts

from radixrt.config import RuntimeConfig
from radixrt.runtime.assemble import build_loop
from radixrt.runtime.channel import LocalEngineChannel
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
    Run,
    Step,
    TokenSampling,
    pack_ids,
)

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "tie_word_embeddings": False,
}


def greedy(max_tokens: int) -> TokenSampling:
    """Return greedy sampling of exactly ``max_tokens`` tokens."""
    return TokenSampling(max_tokens, 0, 0.0, 1.0, 0, 0.0, 0.0, 0.0, 1.0, (), 0, ())


class EngineDriver:
    """Drives an engine loop on this thread."""

    def __init__(self, config: RuntimeConfig) -> None:
        self.channel = LocalEngineChannel(self._take)
        self.info: dict[str, Any] = {}
        self._outputs: dict[int, list[int]] = {}
        self._open: set[int] = set()
        self._reply: dict[str, Any] = {}
        self._next_id = 1
        self.phases: list[tuple[str, float]] = []
        self.loop = build_loop(config, self.channel)
        self.vocab_size = self.loop._vocab_size

    def _take(self, messages: list[FromEngine]) -> None:
        for message in messages:
            match message:
                case Step(sampled=sampled):
                    for item in sampled:
                        self._outputs[item.id] += item.token_ids
                case Done(id=call) | EngineFailed(id=int(call), code="cancelled"):
                    self._open.discard(call)
                case EngineFailed():
                    raise SystemExit(f"the engine failed: {message}")
                case EngineReply(data=data):
                    self._reply = data
                case Progress(phase=phase):
                    self.phases.append((phase, time.perf_counter()))
                case Ready(info=info):
                    self.info = info
                    self.phases.append(("ready", time.perf_counter()))

    def submit(self, runs: list[Run]) -> range:
        """Send calls, under ids of their own, and return those."""
        calls = range(self._next_id, self._next_id + len(runs))
        self._next_id += len(runs)
        self._outputs = {call: [] for call in calls}
        self._open = set(calls)
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
        while self._open:
            self.loop.step()

    def generate(self, prompts: Prompts, max_new: list[int]) -> Prompts:
        """Run all prompts to their end and return what was generated."""
        calls = self.submit(
            [
                Run(0, 0, pack_ids(np.array(prompt, np.int32)), greedy(limit))
                for prompt, limit in zip(prompts, max_new, strict=True)
            ]
        )
        while self._open:
            self.loop.step()
        for call, limit in zip(calls, max_new, strict=True):
            assert len(self._outputs[call]) == limit
        return list(self._outputs.values())

    def flush(self) -> None:
        """Empty the cache."""
        self.channel.put([FlushCache(0)])
        self.loop.step()

    def stats(self) -> dict[str, Any]:
        """Return the engine's counters."""
        self.channel.put([QueryStats(0)])
        self.loop.step()
        return self._reply


@contextlib.contextmanager
def runtime_config(model: str, settings: list[str]) -> Iterator[RuntimeConfig]:
    """Yield the config of a model directory, or of a named shape with made-up weights, with the
    OPTION=VALUE ``settings``; its files are there until the context ends."""
    options: dict[str, Any] = {}
    for item in settings:
        name, value = item.split("=", 1)
        options[name] = int(value) if value.lstrip("-").isdigit() else value
    with tempfile.TemporaryDirectory() as folder:
        if model == "llama-3.1-8b":
            path = Path(folder, model)
            path.mkdir()
            Path(path, "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")
            options |= {"model": path, "load_format": "dummy"}
        else:
            options["model"] = Path(model)
        yield RuntimeConfig(**options)


def main() -> None:
    """Print one line a workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--only", default=",".join(WORKLOADS))
    parser.add_argument("--scale", type=float, default=1.0, help="shortens every length")
    parser.add_argument("--seeds", default="0,100")
    parser.add_argument("--json")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    begin = time.perf_counter()
    with runtime_config(arguments.model, arguments.set) as config:
        driver = EngineDriver(config)
    driver.generate([[11, 12, 13]], [1])
    first_token = time.perf_counter() - begin
    print({k: v for k, v in driver.info.items() if isinstance(v, str | int | float)})
    print(f"start to first token {first_token:.1f} s;", *_durations(driver.phases, begin))
    results: dict[str, Any] = {"start_s": first_token, "info": driver.info}
    for name in arguments.only.split(","):
        runs = []
        for seed in map(int, arguments.seeds.split(",")):
            driver.flush()
            before = driver.stats()
            begin = time.perf_counter()
            counts = WORKLOADS[name](driver.generate, seed, driver.vocab_size, arguments.scale)
            seconds = time.perf_counter() - begin
            after = driver.stats()
            keys = ("steps", "computed_tokens", "cached_tokens", "retractions")
            counts |= {k: after[k] - before[k] for k in keys if k in after}
            runs.append({"seconds": seconds} | counts)
        best = min(runs, key=lambda run: run["seconds"])
        results[name] = best
        rate = best["output_tokens"] / best["seconds"]
        print(f"{name:10} {best['seconds']:8.2f} s {rate:9.0f} output tok/s  {best}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1, default=str))


def _durations(phases: list[tuple[str, float]], begin: float) -> list[str]:
    ends = [at for _, at in phases[1:]] + [phases[-1][1]]
    starts = [f"import+choose {phases[0][1] - begin:.1f} s"]
    return starts + [
        f"{name} {end - at:.1f} s" for (name, at), end in zip(phases, ends, strict=True)
    ]


if __name__ == "__main__":
    main()
