"""Attention over shared prefixes and in mixed steps, beside FlashInfer's.

    python benchmarks/gpu_attention.py [--tune] [--json out.json]

Needs a CUDA device and flashinfer-python. One layer of the Llama-3.1-8B shape (32 query heads, 8
key heads of 128, bf16), page size 16; times in µs are medians of CUDA-graph replays. Every result
is compared with FlashInfer's on the same inputs first. A shape with a spread has rows whose own
lengths are log-normal; one with prompt tokens also prefills, where FlashInfer's prefill takes all
rows of the step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import triton

from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.attention.flashinfer import FlashInferDecode, FlashInferPrefill
from radixrt.runtime.attention.triton import LARGE, SMALL, TileShape, TritonAttention
from radixrt.runtime.batch import ForwardBatch

PAGE = 16
SPEC = AttentionSpec(num_heads=32, num_kv_heads=8, head_dim=128, scale=128**-0.5)


class Shape(NamedTuple):
    """``groups`` × ``width`` rows over tokens shared by all, by the group, and their own: ``own``
    exactly, or of that median with a log-normal ``spread``, at most 2048. They compute ``new``
    tokens each, their last. Beside them prompts of 100, 200, … new tokens and as many cached ones,
    ``prompt_tokens`` in all."""

    groups: int
    width: int
    common: int
    shared: int
    own: int
    spread: float = 0.0
    prompt_tokens: int = 0
    new: int = 1

    @property
    def prefills(self) -> bool:
        """Whether FlashInfer's prefill has to take it."""
        return self.prompt_tokens > 0 or self.new > 1


SHAPES = {
    "40 x 16 (1008/112/128)": Shape(40, 16, 1008, 112, 128),
    "40 x 16 (1008/512/64)": Shape(40, 16, 1008, 512, 64),
    "16 x 16 (1008/1008/256)": Shape(16, 16, 1008, 1008, 256),
    "57 x 4 (16/1008/112)": Shape(57, 4, 16, 1008, 112),
    "1 x 64 (16/4096/128)": Shape(1, 64, 16, 4096, 128),
    "256 x 1 (0/0/1024)": Shape(256, 1, 0, 0, 1024),
    "64 x 1 (0/0/1024)": Shape(64, 1, 0, 0, 1024),
    "40 x 64 (1008/256/64)": Shape(40, 64, 1008, 256, 64),
    "64 x 1 (400/0/928)": Shape(1, 64, 400, 0, 928),
    "64 x 1 (400/0/~900)": Shape(1, 64, 400, 0, 900, 0.2),
    "8 x 1 (0/0/4096)": Shape(8, 1, 0, 0, 4096),
    "1 x 1 (0/0/4096)": Shape(1, 1, 0, 0, 4096),
    "437 x 1 (0/0/~400)": Shape(437, 1, 0, 0, 400, 0.7),
    "147 x 1 (0/0/~250) + 350": Shape(147, 1, 0, 0, 250, 0.8, 350),
    "437 x 1 (0/0/~400) + 250": Shape(437, 1, 0, 0, 400, 0.7, 250),
    "187 x 1 (0/0/~600) + 320": Shape(187, 1, 0, 0, 600, 0.6, 320),
    "64 x 1 (400/0/~900) + 448": Shape(1, 64, 400, 0, 900, 0.2, 448),
    "56 x 16 (1008/192/36) 9 new": Shape(56, 16, 1008, 192, 36, new=9),
    "32 x 16 (1008/192/36) 16 new": Shape(32, 16, 1008, 192, 36, new=16),
    "64 x 4 (1008/192/36) 32 new": Shape(64, 4, 1008, 192, 36, new=32),
    "32 x 4 (1008/192/64) 64 new": Shape(32, 4, 1008, 192, 64, new=64),
    "16 x 4 (1008/192/128) 128 new": Shape(16, 4, 1008, 192, 128, new=128),
    "1 x 64 (400/0/900) 128 new": Shape(1, 64, 400, 0, 900, new=128),
}


def make_batch(shape: Shape) -> tuple[ForwardBatch, int]:
    """Return a batch of that shape, pages scattered, and the page count."""
    rng = np.random.default_rng(1)
    decodes = shape.groups * shape.width
    own = np.full(decodes, shape.own)
    if shape.spread:
        own = np.clip(rng.lognormal(np.log(shape.own), shape.spread, decodes), 16, 2048).astype(int)
    new: list[int] = []
    while sum(new) < shape.prompt_tokens:
        new.append(min(100 * (len(new) + 1), shape.prompt_tokens - sum(new)))
    ahead = [shape.common // PAGE, shape.shared // PAGE]
    lengths = [*own.tolist(), *(2 * count for count in new)]
    total = 1 + ahead[0] + shape.groups * ahead[1] + sum(-(-length // PAGE) for length in lengths)
    free = iter(np.random.default_rng(0).permutation(np.arange(1, total, dtype=np.int32)).tolist())

    def take(length: int) -> list[int]:
        return list(itertools.islice(free, -(-length // PAGE)))

    everyone = take(ahead[0] * PAGE)
    rows: list[list[int]] = []
    for _ in range(shape.groups):
        prefix = everyone + take(ahead[1] * PAGE)
        rows += [prefix + take(lengths[len(rows) + i]) for i in range(shape.width)]
    rows += [take(2 * count) for count in new]
    table = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    kv_lens = np.array(lengths, np.int32)
    kv_lens[:decodes] += sum(ahead) * PAGE
    query_start = np.cumsum([0, *[shape.new] * decodes, *new]).astype(np.int32)
    lens = np.diff(query_start)
    positions = np.arange(query_start[-1]) + np.repeat(kv_lens - lens - query_start[:-1], lens)
    device = torch.device("cuda")
    zeros = torch.zeros(int(query_start[-1]), dtype=torch.int64, device=device)
    return (
        ForwardBatch(
            input_ids=zeros,
            positions=torch.from_numpy(positions.astype(np.int64)).to(device),
            kv_slots=zeros,
            query_start=torch.from_numpy(query_start).to(device),
            kv_lens=torch.from_numpy(kv_lens).to(device),
            logits_rows=zeros,
            query_start_host=query_start,
            kv_lens_host=kv_lens,
            page_table_host=table,
        ),
        total,
    )


def replay_us(run: Callable[[], Any], repeats: int = 20) -> float:
    """Return the median time of one call, from replays of a graph of ten."""
    for _ in range(3):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 100)
    return statistics.median(times)


def plan_ms(plan: Callable[[], Any]) -> float:
    """Return the median host time of one plan, upload included."""
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        plan()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


class Case:
    """One shape's inputs, and what FlashInfer makes of them."""

    def __init__(self, shape: Shape) -> None:
        self.device = torch.device("cuda")
        self.batch, self.num_pages = make_batch(shape)
        shape_kv = (self.num_pages, PAGE, SPEC.num_kv_heads, SPEC.head_dim)
        self.caches = [
            torch.randn(shape_kv, device=self.device, dtype=torch.bfloat16) for _ in "kv"
        ]
        self.query = torch.randn(
            (self.batch.num_tokens, SPEC.num_heads, SPEC.head_dim),
            device=self.device,
            dtype=torch.bfloat16,
        )
        kind = FlashInferPrefill if shape.prefills else FlashInferDecode
        peer = kind([SPEC], PAGE, self.device, torch.bfloat16)
        self.peer_plan_ms = plan_ms(lambda: peer.plan(self.batch))
        self.expected = peer.run(0, self.query, *self.caches).float()
        self.peer_us = replay_us(lambda: peer.run(0, self.query, *self.caches))

    def measure(self, ours: TritonAttention) -> tuple[float, float, float]:
        """Return (µs a layer, ms a plan, relative error against FlashInfer)."""
        plan = plan_ms(lambda: ours.plan(self.batch))
        got = ours.run(0, self.query, *self.caches).float()
        error = ((got - self.expected).norm() / self.expected.norm()).item()
        if not error < 1e-2:
            raise SystemExit(f"wrong result: relative error {error}")
        return replay_us(lambda: ours.run(0, self.query, *self.caches)), plan, error


def tune(case: Case) -> None:
    """Print the time of other tile shapes."""
    larges = [(64, 32, 1, 4, 4), (64, 32, 3, 4, 4), (64, 64, 2, 4, 3)]
    larges += [(128, 32, 1, 8, 4), (128, 64, 1, 8, 3), (128, 64, 2, 8, 3), (128, 128, 1, 8, 2)]
    smalls = [(16, 64, 2, 2, 3), (16, 64, 3, 2, 3), (16, 64, 6, 2, 3), (16, 64, 8, 2, 3)]
    smalls += [(16, 64, 2, 2, 4), (16, 32, 4, 2, 4), (16, 32, 4, 1, 4), (16, 128, 2, 4, 2)]
    variants = [(TileShape(*large), SMALL) for large in larges]
    variants += [(LARGE, TileShape(*small)) for small in smalls]
    for large, small in variants:
        try:
            us, _, _ = case.measure(
                TritonAttention([SPEC], PAGE, case.device, large=large, small=small)
            )
        except triton.runtime.errors.OutOfResources:
            continue
        print(f"    {us:8.1f} large={large} small={small}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("--tune", action="store_true", help="also try other tile shapes")
    parser.add_argument("--only", default=",".join(SHAPES), help="names of shapes, by commas")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__)
    print(
        f"{'shape':30} {'flashinfer':>10} {'plain':>8} {'grouped':>8} {'ratio':>6} {'floor':>6}"
        "  plan ms: flashinfer, ours"
    )
    for name in arguments.only.split(","):
        case = Case(SHAPES[name])
        plain_us, _, _ = case.measure(TritonAttention([SPEC], PAGE, case.device, group=False))
        us, our_plan, error = case.measure(TritonAttention([SPEC], PAGE, case.device))
        floor = (case.num_pages - 1) * PAGE * SPEC.num_kv_heads * SPEC.head_dim * 4 / 4.28e6
        results.append(
            {
                "shape": name,
                "flashinfer_us": case.peer_us,
                "plain_us": plain_us,
                "grouped_us": us,
                "floor_us": floor,
                "flashinfer_plan_ms": case.peer_plan_ms,
                "plan_ms": our_plan,
                "error": error,
            }
        )
        print(
            f"{name:30} {case.peer_us:10.1f} {plain_us:8.1f} {us:8.1f} {case.peer_us / us:6.2f} "
            f"{floor:6.1f}  {case.peer_plan_ms:.2f}, {our_plan:.2f}",
            flush=True,
        )
        if arguments.tune:
            tune(case)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
