"""Time to first token after eviction, and what write-through costs a decoding engine.

    python benchmarks/hicache_ttft.py llama-3.1-8b --json OUT      # random weights, on a GPU
    python benchmarks/hicache_ttft.py qwen2-0.5b --prompts 1       # random weights, on a CPU
    python benchmarks/hicache_ttft.py MODEL_DIR

Two processes, one after the other. The first computes prompts (*recomputed*), sends them again
(*device*), and again after the device has dropped everything (*host*); then it measures output
tokens a second of requests that share nothing, in turn with the tiers and without. The second is a
restart over the same disk (*disk*). ``--only decode`` measures decoding alone.

Whether what came back is right is decided twice. A fingerprint of every page is compared with the
one of what was computed. And hits of the same tokens in the memories of the device, of the host and
on disk, in steps of the same shape, must give the same tokens and the same logprobs to the last
bit (two hits on the device show whether it computes the same twice). The recomputed answer need not
be the same: its prompt was computed in larger steps, which round otherwise. Where it first differs,
the report says how far the likeliest token was ahead of the next.
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
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from cpu_engine import SHAPE as QWEN_05B

from radixrt.bench.engine import EngineDriver, greedy
from radixrt.bench.models import SHAPES as NAMED_SHAPES
from radixrt.config import RuntimeConfig
from radixrt.runtime.wire import FromEngine, Run, SampledLogprob, Step, TokenSampling, pack_ids

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": NAMED_SHAPES["llama-3.1-8b"],
    "qwen2-0.5b": QWEN_05B,
}
NUM_NEW = 8
NO_LOGPROBS = greedy(NUM_NEW)
WITH_LOGPROBS = msgspec.structs.replace(greedy(NUM_NEW), logprobs=True, top_logprobs_num=2)


class Driver(EngineDriver):
    """Keeps the logprobs as well."""

    logprobs: list[SampledLogprob]

    def _take(self, messages: list[FromEngine]) -> None:
        for message in messages:
            if isinstance(message, Step):
                self.logprobs += [each for item in message.sampled for each in item.logprobs]
        super()._take(messages)


class Answer(NamedTuple):
    """What followed a prompt: tokens, their logprobs, and how far the likeliest token was ahead of
    the next one at each."""

    token_ids: list[int]
    logprobs: list[float]
    margins: list[float]


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
            self.driver = Driver(config)
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
        is_gpu = self.loop.engine.device.type == "cuda"
        for length in (options.prompt_tokens if is_gpu else 1024, 64, 3):
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

    def first_token(
        self, prompt: np.ndarray[Any, Any], sampling: TokenSampling = NO_LOGPROBS
    ) -> tuple[float, list[int], int]:
        """Return seconds to the first token, the tokens, and how many of the prompt were cached."""
        driver = self.driver
        call = driver._next_id
        driver._next_id += 1
        driver._outputs = {call: []}
        driver._open = {call}
        driver.logprobs = []
        before = self.loop.scheduler.metrics.cached_tokens
        begin = time.perf_counter()
        driver.channel.put([Run(call, call, pack_ids(prompt), sampling)])
        while not driver._outputs[call]:
            self.loop.step()
        seconds = time.perf_counter() - begin
        while driver._open:
            self.loop.step()
        return seconds, driver._outputs[call], self.loop.scheduler.metrics.cached_tokens - before

    def answer(self, prompt: np.ndarray[Any, Any]) -> tuple[float, Answer, int]:
        """``first_token``, with logprobs."""
        seconds, tokens, hit = self.first_token(prompt, WITH_LOGPROBS)
        found = self.driver.logprobs
        margins = [each.top_logprobs[0] - each.top_logprobs[1] for each in found]
        return seconds, Answer(tokens, [each.logprob or 0.0 for each in found], margins), hit

    def num_full(self, prompt: np.ndarray[Any, Any]) -> int:
        """Pages that a hit below the device can have: the last token is always computed."""
        return (len(prompt) - 1) // self.kv.page_size

    def keep_full(self, prompt: np.ndarray[Any, Any]) -> None:
        """Leave as much of a prompt on the device as the tiers below it have."""
        self.first_token(prompt)
        cache, namespace = self.kv.cache, self.loop.calls.namespace
        while cache.peek(namespace, prompt) > self.num_full(prompt) * cache.page_size:
            more = cache.continuation(namespace, prompt, cache.page_size)
            gone = cache.forget(namespace, np.concatenate([prompt, more]), self.num_full(prompt))
            assert gone

    def settle(self) -> None:
        """Let every copy to the host and the disk end."""
        if self.tiers is not None and not self.tiers.fence(600):
            raise SystemExit("the tiers did not settle within ten minutes")

    def evict(self) -> None:
        """Take everything from the device."""
        self.settle()
        self.kv.cache.clear()
        assert self.kv.cache.num_cached == 0

    def fingerprints(self, prompt: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return a hash of the bytes of each of the prompt's full pages on the device, int64."""
        lease = self.kv.cache.hold(self.loop.calls.namespace, prompt)
        pool = self.loop.engine.pool
        weights: torch.Tensor | None = None
        found = []
        for page in lease.pages[: self.num_full(prompt)].tolist():
            parts = torch.stack([pool.k[:, page], pool.v[:, page]]).flatten().view(torch.int16)
            if weights is None:
                random = torch.Generator(parts.device).manual_seed(0)
                weights = (
                    torch.randint(2**62, parts.shape, device=parts.device, generator=random)
                    .mul_(2)
                    .add_(1)
                )
            found.append((parts.to(torch.int64) * weights).sum())
        lease.release()
        return torch.stack(found).cpu().numpy()

    def close(self) -> None:
        """Stop the tiers, the disk's writes included."""
        self.settle()
        self.loop.close()


def first_process(options: argparse.Namespace) -> dict[str, Any]:
    """Measure recomputing, the device's hits and the host's."""
    bench = Bench(options)
    rows: dict[str, list[float]] = {"recomputed": [], "device": [], "host": []}
    cached: dict[str, list[int]] = {name: [] for name in rows}
    computed: list[Answer] = []
    kept = []
    for prompt in bench.prompts:
        seconds, answer, hit = bench.answer(prompt)
        rows["recomputed"].append(seconds)
        cached["recomputed"].append(hit)
        computed.append(answer)
        kept.append(bench.fingerprints(prompt))
        bench.settle()
    for _ in range(options.repeats):
        for prompt in bench.prompts:
            for name in ("device", "host"):
                bench.first_token(prompt)  # others' evictions took it from the device
                if name == "host":
                    bench.evict()
                seconds, _, hit = bench.first_token(prompt)
                rows[name].append(seconds)
                cached[name].append(hit)
    found = [hits_of(bench, *pair) for pair in zip(bench.prompts, kept, strict=True)]
    np.savez(options.work / "first.npz", *kept)
    bench.evict()
    stats = bench.tiers.stats() if bench.tiers is not None else {}
    rates = decode_rates(bench) if "decode" in options.only else {}
    bench.close()
    return {"seconds": rows, "cached": cached, "rates": rates} | {
        "answers": [
            {"recomputed": answer} | hits for answer, (hits, _) in zip(computed, found, strict=True)
        ],
        "wrong pages": sum(num_wrong for _, num_wrong in found),
        "info": bench.driver.info,
        "hicache": stats,
    }


def hits_of(
    bench: Bench, prompt: np.ndarray[Any, Any], pages: np.ndarray[Any, Any]
) -> tuple[dict[str, Answer], int]:
    """Return what follows hits of the same tokens on the device, twice, and on the host, and how
    many pages that came from there have not the fingerprints ``pages``."""
    # A step that loads is not replayed from a graph, whose rows of nobody change the shape.
    graphs, bench.loop.engine.graphs = bench.loop.engine.graphs, None
    hits = {}
    for name in ("device", "device again", "host"):
        bench.evict() if name == "host" else bench.keep_full(prompt)
        _, hits[name], num_cached = bench.answer(prompt)
        assert num_cached == bench.num_full(prompt) * bench.kv.page_size, (name, num_cached)
    bench.loop.engine.graphs = graphs
    return hits, int((bench.fingerprints(prompt) != pages).sum())


def second_process(options: argparse.Namespace) -> dict[str, Any]:
    """Measure hits on disk after a restart."""
    begin = time.perf_counter()
    bench = Bench(options)
    start = time.perf_counter() - begin
    bench.loop.engine.graphs = None  # as in ``hits_of``; the first token comes without one anyway
    kept = np.load(options.work / "first.npz")
    seconds, cached, answers, num_wrong = [], [], [], 0
    for index, prompt in enumerate(bench.prompts):
        took, answer, hit = bench.answer(prompt)
        seconds.append(took)
        cached.append(hit)
        answers.append({"disk": answer})
        num_wrong += int((bench.fingerprints(prompt) != kept[f"arr_{index}"]).sum())
    stats = bench.tiers.stats() if bench.tiers is not None else {}
    bench.close()
    return {"start_s": start, "seconds": {"disk": seconds}, "cached": {"disk": cached}} | {
        "answers": answers,
        "wrong pages": num_wrong,
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
    """Return output tokens a second with the tiers and without, in turns, by the clock and by the
    processor time of the whole process, which says more on a CPU that others use; requests share
    nothing and nothing is stored below the host."""
    options = bench.options
    assert bench.tiers is not None, "give --host a size"
    bench.tiers.policy = dataclasses.replace(bench.tiers.policy, store_on="keep")
    rng = np.random.default_rng(1)
    rates: dict[str, list[float]] = {"off": [], "on": [], "off processor": [], "on processor": []}
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
        begin, worked = time.perf_counter(), time.process_time()
        bench.driver.generate(prompts, lengths)
        seconds, worked = time.perf_counter() - begin, time.process_time() - worked
        if round_:
            rates[name].append(sum(lengths) / seconds)
            rates[f"{name} processor"].append(sum(lengths) / worked)
            print(f"  tiers {name}: {rates[name][-1]:.0f} output tok/s", file=sys.stderr)
    bench.kv.tiers = bench.tiers
    return rates


PROCESSES = {"first": first_process, "second": second_process, "decode": decode_process}


def rounding(computed: Answer, hit: Answer) -> dict[str, Any]:
    """Return from which token on a recomputed answer differs from the one after a hit, by how much
    the logprobs of the tokens before it do, and how far the likeliest token was ahead there."""
    pairs = zip(computed.token_ids, hit.token_ids, strict=True)
    first = next((i for i, (one, other) in enumerate(pairs) if one != other), NUM_NEW)
    noise = [
        abs(one - other)
        for one, other in zip(computed.logprobs[:first], hit.logprobs[:first], strict=True)
    ]
    return {
        "first difference": first if first < NUM_NEW else None,
        "logprobs differ by": max(noise, default=None),
        "margins there": [a.margins[first] for a in (computed, hit)] if first < NUM_NEW else None,
    }


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
    summary["wrong pages"] = sum(result.get("wrong pages", 0) for result in results.values())
    answers = [result["answers"] for result in results.values() if "answers" in result]
    of_prompt = [
        {name: Answer(*answer) for part in parts for name, answer in part.items()}
        for parts in zip(*answers, strict=True)
    ]
    summary["hits alike"] = {
        name: all(each[name] == each["device"] for each in of_prompt)
        for name in ("device again", "host", "disk")
        if of_prompt and name in of_prompt[0]
    }
    summary["recomputed"] = [rounding(each["recomputed"], each["device"]) for each in of_prompt]
    rates = next((r["rates"] for r in results.values() if r.get("rates")), None)
    if rates:
        off, on = statistics.median(rates["off"]), statistics.median(rates["on"])
        summary |= {"off tok/s": round(off, 1), "on tok/s": round(on, 1), "on/off": on / off}
        worked = [statistics.median(rates[f"{name} processor"]) for name in ("off", "on")]
        summary["on/off by processor time"] = worked[1] / worked[0]
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
    if summary["wrong pages"] or not all(summary["hits alike"].values()):
        raise SystemExit("WRONG: hits that differ")


if __name__ == "__main__":
    main()
