"""Each operation by each provider on a GPU, in µs: the table that the choice of providers rests on.

    python benchmarks/gpu_ops.py [--json FILE]

Shapes of Llama-3.1-8B in bf16. A time is that of one call within a recorded graph of 32, the best
of three replays; results are compared with the reference first. What sgl-kernel has only a part
of is timed by that part: its rotation (by a table in bf16) with our write to the cache, and its
softmax and top-p, after which nothing is sampled yet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from radixrt.errors import ConfigError
from radixrt.runtime.ops import choose_ops
from radixrt.runtime.ops.sampler import SamplingRows

ROWS = (1, 64, 256, 1024, 8192)
HIDDEN, INNER, VOCAB, HEADS, KV_HEADS, DIM = 4096, 14336, 128256, 32, 8, 128


def replay_us(run: Callable[[], Any], count: int = 32) -> float:
    """Return the time of one call in µs."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            run()
    graph.replay()
    times = []
    for _ in range(3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / count)
    return min(times)


def cases(ops: Any, rows: int) -> dict[str, Callable[[], Any]]:
    """Return the operations over fresh inputs of so many rows, the same for every provider."""
    generator = torch.Generator("cuda").manual_seed(rows)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").bfloat16()

    x, residual, weight = draw(rows, HIDDEN), draw(rows, HIDDEN), draw(HIDDEN)
    gate_up = draw(rows, 2 * INNER)
    qkv = draw(rows, HEADS + 2 * KV_HEADS, DIM)
    query, key, value = qkv.split_with_sizes((HEADS, KV_HEADS, KV_HEADS), 1)
    positions = torch.arange(rows, device="cuda") % 4096
    table = torch.randn(8192, DIM, generator=generator, device="cuda")
    pools = [torch.zeros(1024, 16, KV_HEADS, DIM, device="cuda").bfloat16() for _ in "kv"]
    slots = torch.randperm(16384, generator=generator, device="cuda")[:rows]
    few = min(rows, 1024)
    logits = draw(few, VOCAB)
    all_allowed = torch.full((few, VOCAB // 32), -1, dtype=torch.int32, device="cuda")
    few_allowed = torch.zeros_like(all_allowed)
    few_allowed[:, ::50] = 1 << 7
    ones = torch.ones(few, device="cuda")
    greedy = SamplingRows(ones * 0, ones, ones.int() * 0, ones * 0, ones * 0.5, is_random=False)
    nucleus = SamplingRows(ones, ones * 0.9, ones.int() * 0, ones * 0, ones * 0.5)
    runs: dict[str, Callable[[], Any]] = {
        "add_rms_norm": lambda: ops.add_rms_norm(x, residual, weight, 1e-5)[0],
        "rms_norm": lambda: ops.rms_norm(x, weight, 1e-5),
        "gated_act": lambda: ops.gated_act(gate_up, "silu"),
        "rope_kv_write": lambda: ops.rope_kv_write(
            query, key, value, positions, table, *pools, slots
        ),
        "apply_token_mask, all": lambda: ops.apply_token_mask(logits, all_allowed),
        "apply_token_mask, few": lambda: ops.apply_token_mask(logits, few_allowed),
        "sample, greedy": lambda: ops.sample(logits, greedy),
        "sample, top-p": lambda: ops.sample(logits, nucleus),
    }
    if ops.name == "sgl":
        rotary = torch.ops.sgl_kernel.rotary_embedding.default
        top_p = torch.ops.sgl_kernel.top_p_renorm_probs.default
        half_table = table.bfloat16()

        def rope_kv_write() -> None:
            rotary(positions, query.flatten(1), key.flatten(1), DIM, half_table, True)
            ops.kv_write(key, value, *pools, slots)

        def nucleus_of_probs() -> None:
            probs = torch.softmax(logits, dim=-1, dtype=torch.float32)
            top_p(probs, torch.empty_like(probs), None, 0.9)

        runs |= {"rope_kv_write": rope_kv_write, "sample, top-p": nucleus_of_probs}
    return runs


def main() -> None:
    """Print a row an operation and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    device = torch.device("cuda")
    providers = {}
    for name in ("triton", "sgl"):
        try:
            providers[name], _ = choose_ops(device, name)
        except ConfigError as error:
            print(error)
    reference, _ = choose_ops(device, "reference")
    results: list[dict[str, Any]] = []
    for rows in ROWS:
        expected = {
            name: run() for name, run in cases(reference, rows).items() if "sample" not in name
        }
        for op in cases(reference, rows):
            row: dict[str, Any] = {"op": op, "rows": rows}
            for name, ops in providers.items():
                if op == "sample, greedy" and name == "sgl":
                    continue  # Triton's as well
                runs = cases(ops, rows)  # fresh inputs: some operations write to their arguments
                got = runs[op]()
                if isinstance(expected.get(op), torch.Tensor):
                    wide = expected[op].float()
                    error = float((got.float() - wide).norm() / wide.norm())
                    if not error < 1e-2:
                        raise SystemExit(f"{op} by {name}: relative error {error}")
                row[name] = round(replay_us(runs[op]), 2)
            results.append(row)
            print(row, flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
