"""Time to first token after eviction, and what write-through costs a decoding engine.

    python benchmarks/hicache_ttft.py llama-3.1-8b --json OUT      # random weights, on a GPU
    python benchmarks/hicache_ttft.py qwen2-0.5b --prompts 1       # random weights, on a CPU
    python benchmarks/hicache_ttft.py MODEL_DIR

Two processes, one after the other. The first computes prompts (*recomputed*), sends them again
(*device*), and again after the device has dropped everything (*host*); then it measures output
tokens a second of requests that share nothing, in turn with the tiers and without. The second is a
restart over the same disk (*disk*). A sample of the pages that came back is compared byte by byte
with what was computed. ``--only decode`` measures decoding alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu_engine import SHAPE as QWEN_05B

from radixrt.bench.engine import EngineDriver, greedy
from radixrt.bench.models import SHAPES as NAMED_SHAPES
from radixrt.config import RuntimeConfig
from radixrt.runtime.wire import Run, pack_ids

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": NAMED_SHAPES["llama-3.1-8b"],
    "qwen2-0.5b": QWEN_05B,
}
NUM_NEW = 8
CHECKED_PAGES = 32


class Bench:
    """An engine, and prompts that are the same in every process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        settings: dict[str, Any] = {}
        for item in options.set:
            name, value = item.split("=", 1)
            settings[name] = int(value) if value.lstrip("-").isdigit() else value
        settings.setdefault("max_running", options.running)
        if options.disk:
            settings |= {"disk": options.disk, "store_on": "once", "disk_quota": "64GiB"}
        with tempfile.TemporaryDirectory() as folder:
            if options.model in SHAPES:
                text = json.dumps(SHAPES[options.model])
                Path(folder, "config.json").write_text(text, encoding="utf-8")
                settings |= {"model": Path(folder), "load_format": "dummy"}
            else:
                settings["model"] = Path(options.model)
            config = RuntimeConfig(device=options.device, host_memory=options.host, **settings)
            self.driver = EngineDriver(config)
        self.loop = self.driver.loop
        self.kv = self.loop.scheduler.kv
        self.tiers = self.kv.tiers
        rng = np.random.default_rng(0)
        vocabulary = min(self.driver.vocab_size, 100_000)
        self.prompts = [
            rng.integers(1000, vocabulary, options.prompt_tokens).astype(np.int32)
            for _ in range(options.prompts)
        ]
        # Whatever compiles or allocates at its first use: long and short steps.
        for length in (min(options.prompt_tokens // 2, 1024), 64, 3):
            warm = rng.integers(10, 999, length).astype(np.int32)
            for _ in range(2):
                self.first_token(warm)
        self.settle()
        self.warm_up_load(warm=rng.integers(10, 999, 1024).astype(np.int32))
        self.kv.cache.clear()
        if self.tiers is not None:
            self.tiers.clear()

    def warm_up_load(self, warm: np.ndarray[Any, Any]) -> None:
        """Load once."""
        self.first_token(warm)
        self.evict()
        self.first_token(warm)
        self.settle()

    def first_token(self, prompt: np.ndarray[Any, Any]) -> tuple[float, list[int], int]:
        """Return seconds to the first token, the tokens, and how many of the prompt were cached."""
        driver = self.driver
        call = driver._next_id
        driver._next_id += 1
        driver._outputs = {call: []}
        driver._open = {call}
        before = self.loop.scheduler.metrics.cached_tokens
        begin = time.perf_counter()
        driver.channel.put([Run(call, call, pack_ids(prompt), greedy(NUM_NEW))])
        while not driver._outputs[call]:
            self.loop.step()
        seconds = time.perf_counter() - begin
        while driver._open:
            self.loop.step()
        return seconds, driver._outputs[call], self.loop.scheduler.metrics.cached_tokens - before

    def settle(self) -> None:
        """Let every copy to the host and the disk end."""
        if self.tiers is not None and not self.tiers.fence(600):
            raise SystemExit("the tiers did not settle within ten minutes")

    def evict(self) -> None:
        """Take everything from the device."""
        self.settle()
        self.kv.cache.clear()
        assert self.kv.cache.num_cached == 0

    def pages_of(self, prompt: np.ndarray[Any, Any]) -> torch.Tensor:
        """Return a sample of the prompt's pages on the device, int16 [pages, 2, layers, …]."""
        namespace = self.loop.calls.namespace
        lease = self.kv.cache.hold(namespace, prompt)
        pages = lease.pages[:: max(1, len(lease.pages) // CHECKED_PAGES)].tolist()
        pool = self.loop.engine.pool
        found = torch.stack([torch.stack([pool.k[:, p], pool.v[:, p]]) for p in pages])
        lease.release()
        return found.cpu().contiguous().view(torch.int16)

    def close(self) -> None:
        """Stop the tiers, the disk's writes included."""
        self.settle()
        self.loop.close()


def first_process(options: argparse.Namespace) -> dict[str, Any]:
    """Measure recomputing, the device's hits and the host's."""
    bench = Bench(options)
    rows: dict[str, list[float]] = {"recomputed": [], "device": [], "host": []}
    cached: dict[str, list[int]] = {name: [] for name in rows}
    outputs: list[list[int]] = []
    equal = {"device": True, "host": True}
    kept = []
    for prompt in bench.prompts:
        seconds, tokens, hit = bench.first_token(prompt)
        rows["recomputed"].append(seconds)
        cached["recomputed"].append(hit)
        outputs.append(tokens)
        kept.append(bench.pages_of(prompt))
        bench.settle()
    for _ in range(options.repeats):
        for index, prompt in enumerate(bench.prompts):
            for name in ("device", "host"):
                bench.first_token(prompt)  # others' evictions took it from the device
                if name == "host":
                    bench.evict()
                seconds, tokens, hit = bench.first_token(prompt)
                rows[name].append(seconds)
                cached[name].append(hit)
                equal[name] &= tokens == outputs[index]
    for prompt, pages in zip(bench.prompts, kept, strict=True):
        bench.evict()
        bench.first_token(prompt)
        if not torch.equal(bench.pages_of(prompt), pages):
            raise SystemExit("WRONG: pages that came from the host differ from the computed ones")
    np.savez(options.work / "first.npz", *[pages.numpy() for pages in kept])
    bench.evict()
    stats = bench.tiers.stats() if bench.tiers is not None else {}
    rates = decode_rates(bench) if "decode" in options.only else {}
    bench.close()
    return {"seconds": rows, "cached": cached, "outputs": outputs, "same_outputs": equal} | {
        "rates": rates,
        "info": bench.driver.info,
        "hicache": stats,
    }


def second_process(options: argparse.Namespace) -> dict[str, Any]:
    """Measure hits on disk after a restart."""
    begin = time.perf_counter()
    bench = Bench(options)
    start = time.perf_counter() - begin
    kept = np.load(options.work / "first.npz")
    seconds, cached, outputs = [], [], []
    for index, prompt in enumerate(bench.prompts):
        took, tokens, hit = bench.first_token(prompt)
        seconds.append(took)
        cached.append(hit)
        outputs.append(tokens)
        if not np.array_equal(bench.pages_of(prompt).numpy(), kept[f"arr_{index}"]):
            raise SystemExit("WRONG: pages that came from disk differ from the computed ones")
    stats = bench.tiers.stats() if bench.tiers is not None else {}
    bench.close()
    return {"start_s": start, "seconds": {"disk": seconds}, "cached": {"disk": cached}} | {
        "outputs": outputs,
        "hicache": stats,
    }


def decode_process(options: argparse.Namespace) -> dict[str, Any]:
    """Measure decoding alone."""
    options.disk = None
    bench = Bench(options)
    rates = decode_rates(bench)
    bench.close()
    return {"rates": rates}


def decode_rates(bench: Bench) -> dict[str, list[float]]:
    """Return output tokens a second with the tiers and without, in turns; requests share nothing
    and nothing is stored below the host."""
    options = bench.options
    assert bench.tiers is not None, "give --host a size"
    bench.tiers.policy = dataclasses.replace(bench.tiers.policy, store_on="keep")
    rng = np.random.default_rng(1)
    rates: dict[str, list[float]] = {"off": [], "on": []}
    waves = 3 * options.running
    for round_ in range(2 * options.rounds + 1):  # the first warms up
        name = "on" if round_ % 2 == 0 else "off"
        bench.kv.cache.clear()
        bench.kv.tiers = bench.tiers if name == "on" else None
        top = min(30_000, bench.driver.vocab_size)
        prompts = rng.integers(10, top, (waves, options.decode_prompt)).tolist()
        # Ends are spread out, so that some request is copied down at any time.
        low, high = options.decode_new // 2, options.decode_new * 3 // 2
        lengths = rng.integers(low, high + 1, waves).tolist()
        begin = time.perf_counter()
        bench.driver.generate(prompts, lengths)
        seconds = time.perf_counter() - begin
        if round_:
            rates[name].append(sum(lengths) / seconds)
            print(f"  tiers {name}: {rates[name][-1]:.0f} output tok/s", file=sys.stderr)
    bench.kv.tiers = bench.tiers
    return rates


PROCESSES = {"first": first_process, "second": second_process, "decode": decode_process}


def report(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return medians in milliseconds and the shares that are asked for."""
    summary: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {}
    for result in results.values():
        seconds |= result.get("seconds", {})
    base = statistics.median(seconds["recomputed"]) if seconds else 0.0
    for name, values in seconds.items():
        median = statistics.median(values)
        summary[f"{name} ms"] = round(median * 1000, 2)
        summary[f"{name} share"] = round(median / base, 4)
    for result in results.values():
        for name, values in result.get("cached", {}).items():
            summary[f"{name} cached"] = min(values)
    rates = next((r["rates"] for r in results.values() if r.get("rates")), None)
    if rates:
        off, on = statistics.median(rates["off"]), statistics.median(rates["on"])
        summary |= {"off tok/s": round(off, 1), "on tok/s": round(on, 1), "on/off": on / off}
    return summary


def main() -> None:
    """Run the processes and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompt-tokens", type=int, default=8000)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--host", default="12GiB", help="host_memory")
    parser.add_argument("--running", type=int, default=32)
    parser.add_argument("--decode-prompt", type=int, default=256)
    parser.add_argument("--decode-new", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="first,decode,second")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--process", choices=PROCESSES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--disk", type=Path, help="where to; a temporary directory by default")
    options = parser.parse_args()
    if options.process:
        result = PROCESSES[options.process](options)
        (options.work / f"{options.process}.json").write_text(json.dumps(result, default=str))
        return
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        arguments = sys.argv[1:]
        extra = ["--work", str(work)]
        if options.disk is None and "second" in options.only:
            extra += ["--disk", str(work / "pages")]
        names = options.only.split(",")
        for name in names:
            if name == "decode" and "first" in names:
                continue  # at the end of the first process
            command = [sys.executable, __file__, *arguments, *extra, "--process", name]
            begin = time.perf_counter()
            subprocess.run(command, check=True)
            results[name] = json.loads((work / f"{name}.json").read_text())
            print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    summary = report(results)
    print(json.dumps(summary, indent=1))
    if options.json:
        options.json.write_text(json.dumps({"summary": summary} | results, indent=1))


if __name__ == "__main__":
    main()
