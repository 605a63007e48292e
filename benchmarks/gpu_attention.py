"""Decode attention over shared prefixes: our grouped kernel beside FlashInfer's paged decode.

    python benchmarks/gpu_attention.py [--tune] [--json out.json]

Needs a CUDA device and flashinfer-python. One layer of the Llama-3.1-8B shape (32 query heads, 8
key heads of 128, bf16), page size 16; times in µs are medians of CUDA-graph replays. Every result
is compared with FlashInfer's on the same inputs first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.attention.flashinfer import FlashInferDecode
from radixrt.runtime.attention.triton import LARGE, SMALL, TileShape, TritonAttention
from radixrt.runtime.batch import ForwardBatch

PAGE = 16
SPEC = AttentionSpec(num_heads=32, num_kv_heads=8, head_dim=128, scale=128**-0.5)
SHAPES = {
    "40 x 16 (1008/112/128)": (40, 16, 1008, 112, 128),
    "40 x 16 (1008/512/64)": (40, 16, 1008, 512, 64),
    "16 x 16 (1008/1008/256)": (16, 16, 1008, 1008, 256),
    "57 x 4 (16/1008/112)": (57, 4, 16, 1008, 112),
    "1 x 64 (16/4096/128)": (1, 64, 16, 4096, 128),
    "256 x 1 (0/0/1024)": (256, 1, 0, 0, 1024),
    "64 x 1 (0/0/1024)": (64, 1, 0, 0, 1024),
    "40 x 64 (1008/256/64)": (40, 64, 1008, 256, 64),
    "64 x 1 (400/0/928)": (1, 64, 400, 0, 928),
    "8 x 1 (0/0/4096)": (8, 1, 0, 0, 4096),
    "1 x 1 (0/0/4096)": (1, 1, 0, 0, 4096),
}
"""Name → groups, rows a group, tokens shared by all, by the group, and own."""


def decode_batch(groups: int, width: int, common: int, shared: int, own: int) -> tuple[Any, int]:
    """Return a decode batch whose rows share as told, pages scattered, and the page count."""
    counts = [common // PAGE, shared // PAGE, -(-own // PAGE)]
    total = counts[0] + groups * (counts[1] + width * counts[2]) + 1
    free = iter(np.random.default_rng(0).permutation(np.arange(1, total, dtype=np.int32)).tolist())

    def take(n: int) -> list[int]:
        return list(itertools.islice(free, n))

    everyone = take(counts[0])
    rows = []
    for _ in range(groups):
        prefix = everyone + take(counts[1])
        rows += [prefix + take(counts[2]) for _ in range(width)]
    table = np.array(rows, np.int32)
    batch = len(rows)
    kv_lens = np.full(batch, counts[0] * PAGE + counts[1] * PAGE + own, np.int32)
    query_start = np.arange(batch + 1, dtype=np.int32)
    device = torch.device("cuda")
    zeros = torch.zeros(batch, dtype=torch.int64, device=device)
    return (
        ForwardBatch(
            input_ids=zeros,
            positions=torch.from_numpy(kv_lens.astype(np.int64) - 1).to(device),
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

    def __init__(self, shape: tuple[int, int, int, int, int]) -> None:
        self.device = torch.device("cuda")
        self.batch, self.num_pages = decode_batch(*shape)
        shape_kv = (self.num_pages, PAGE, SPEC.num_kv_heads, SPEC.head_dim)
        self.caches = [
            torch.randn(shape_kv, device=self.device, dtype=torch.bfloat16) for _ in "kv"
        ]
        self.query = torch.randn(
            (self.batch.num_rows, SPEC.num_heads, SPEC.head_dim),
            device=self.device,
            dtype=torch.bfloat16,
        )
        peer = FlashInferDecode([SPEC], PAGE, self.device, torch.bfloat16)
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
    larges = ((64, 64, 4, 3), (128, 32, 8, 3), (128, 64, 8, 3))
    smalls = ((16, 64, 2, 3), (16, 64, 4, 2), (16, 32, 2, 3))
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
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__)
    print(
        f"{'shape':26} {'flashinfer':>10} {'plain':>8} {'grouped':>8} {'ratio':>6} {'floor':>6}"
        "  plan ms: flashinfer, ours"
    )
    for name, shape in SHAPES.items():
        case = Case(shape)
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
            f"{name:26} {case.peer_us:10.1f} {plain_us:8.1f} {us:8.1f} {case.peer_us / us:6.2f} "
            f"{floor:6.1f}  {case.peer_plan_ms:.2f}, {our_plan:.2f}",
            flush=True,
        )
        if arguments.tune:
            tune(case)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
