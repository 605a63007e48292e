"""Where a decode step's time goes on a GPU: by kind of kernel, and how long the device idles.

    python benchmarks/step_profile.py llama-3.1-8b [--json FILE] [--only chats]

Each case runs until all its requests decode, then records a few steps by torch's profiler (device
activity alone, so that the host is not slowed down).
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from radixrt.bench.engine import EngineDriver, greedy
from radixrt.bench.models import model_config
from radixrt.runtime.wire import Run, pack_ids


@dataclass(frozen=True, slots=True)
class Case:
    """``rows`` requests, in groups of ``width`` that share ``group`` tokens behind ``common`` ones
    of all, and ``own`` tokens each."""

    rows: int
    common: int
    width: int
    group: int
    own: int


CASES = {
    "single": Case(1, 0, 1, 0, 640),
    "rows 8": Case(8, 0, 1, 0, 1000),
    "chats": Case(64, 400, 1, 0, 900),
    "rows 128": Case(128, 0, 1, 0, 600),
    "rows 256": Case(256, 0, 1, 0, 400),
    "rows 1024": Case(1024, 0, 1, 0, 250),
    "tree": Case(2560, 1000, 64, 250, 40),
}

KINDS = (
    ("attention", ("attend_tiles", "merge_partials", "PrefillWith", "BatchPrefill", "BatchDecode")),
    ("products", ("nvjet", "gemm", "cutlass", "splitK", "_product", "cublas")),
    ("sampling", ("_sample", "reduce_kernel", "index_put", "index_elementwise")),
    ("copies", ("Memcpy", "Memset", "memcpy")),
    ("norms, rotation, gate", ("_rms_norm", "_rope", "_gated_act")),
)

STEPS = 8


def kind_of(name: str) -> str:
    """Return the kind of work of a kernel."""
    return next((kind for kind, parts in KINDS if any(p in name for p in parts)), "other")


def start(driver: EngineDriver, case: Case, seed: int, tokens: int) -> None:
    """Submit the case's requests."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> list[int]:
        return rng.integers(10, driver.vocab_size, count).tolist()

    common, prompts = draw(case.common), []
    for _ in range(case.rows // case.width):
        prefix = common + draw(case.group)
        prompts += [prefix + draw(case.own) for _ in range(case.width)]
    driver.submit([Run(0, 0, pack_ids(np.array(p, np.int32)), greedy(tokens)) for p in prompts])


def measure(driver: EngineDriver, case: Case, seed: int) -> dict[str, Any]:
    """Return the milliseconds of one decode step: wall, busy, idle and by kind."""
    driver.flush()
    computed = case.common + case.rows // case.width * case.group + case.rows * case.own
    start(driver, case, seed, 60 + computed // 4000)
    slots = driver.loop.scheduler.slots
    while slots.num_active < case.rows or (slots.catching >= 0).any():
        driver.loop.step()
    for _ in range(5):
        driver.loop.step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(2 * STEPS):
        driver.loop.step()
    torch.cuda.synchronize()
    wall = (time.perf_counter() - begin) / (2 * STEPS) * 1e3
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(STEPS):
            driver.loop.step()
        torch.cuda.synchronize()
    events = [e for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    spans = sorted((e.time_range.start, e.time_range.end) for e in events)
    busy, reached = 0.0, spans[0][0]
    for first, last in spans:
        busy += max(0.0, last - max(first, reached))
        reached = max(reached, last)
    span = reached - spans[0][0]
    kinds: dict[str, float] = defaultdict(float)
    names: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in events:
        length = (event.time_range.end - event.time_range.start) / STEPS / 1e3
        kinds[kind_of(event.name)] += length
        names[event.name[:60]][0] += length
        names[event.name[:60]][1] += 1 / STEPS
    top = sorted(names.items(), key=lambda item: -item[1][0])[:12]
    driver.cancel()
    return {
        "wall_ms": wall,
        "busy_ms": busy / STEPS / 1e3,
        "idle_share": 1 - busy / span,
        "kinds_ms": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "top": {name: {"ms": ms, "launches": count} for name, (ms, count) in top},
    }


def main() -> None:
    """Print a block a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--json")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    arguments = parser.parse_args()
    with model_config(arguments.model, arguments.set) as config:
        # Prompts in large steps, so that all rows decode together soon.
        driver = EngineDriver(dataclasses.replace(config, mixed_step_tokens=8192))
    gc.freeze()  # as the engine's process of a server does: else a full collection stops it
    results = {}
    for seed, name in enumerate(arguments.only.split(",")):
        found = results[name] = measure(driver, CASES[name], seed)
        kinds = ", ".join(f"{kind} {ms:.2f}" for kind, ms in found["kinds_ms"].items())
        print(
            f"{name:10} wall {found['wall_ms']:6.2f} ms, busy {found['busy_ms']:6.2f}, "
            f"idle {found['idle_share']:.1%}; {kinds}",
            flush=True,
        )
        if arguments.verbose:
            for kernel, entry in found["top"].items():
                print(f"    {entry['ms']:7.3f} ms {entry['launches']:6.1f}x  {kernel}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
