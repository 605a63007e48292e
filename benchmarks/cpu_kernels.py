"""CPU kernels one by one at the shapes of a 0.5B model, beside torch and the machine's ceilings.

    python benchmarks/cpu_kernels.py [--threads 2] [--variant avx2] [--dtype bf16]

"bandwidth" is torch's sum over 1 GiB, "peak" the best rate of any product measured. Times are
medians; CPU time per thread would hide what other processes do to caches, so wall time is shown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812

from radixrt._native import Kernels

HIDDEN, INNER, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 896, 4864, 151_936, 14, 2, 64
PROJECTIONS = {
    "qkv": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
    "o": (HIDDEN, HEADS * HEAD_DIM),
    "gate_up": (2 * INNER, HIDDEN),
    "down": (HIDDEN, INNER),
    "head": (VOCAB, HIDDEN),
}


def seconds(call: Callable[[], object], budget_s: float = 0.3) -> float:
    """Return the median time of a call."""
    times: list[float] = []
    call()
    end = time.perf_counter() + budget_s
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def products(kernels: Kernels, dtype: torch.dtype) -> None:
    """Print the linear layers at several numbers of tokens."""
    columns = {"linear": kernels.linear, "gemm": kernels.gemm, "torch": F.linear}
    print(f"{'product':10}{'tokens':>7}" + "".join(f"{title:>22}" for title in columns))
    for name, (rows, depth) in PROJECTIONS.items():
        # Enough copies that none stays in the last-level cache, as in a model.
        copies = max(1, 2**28 // (rows * depth * 2))
        weights = [torch.ones(rows, depth, dtype=dtype) for _ in range(min(copies, 24))]
        for tokens in (1, 2, 4, 8, 16, 32, 128, 512):
            if name == "head" and tokens > 16:
                continue
            x = torch.ones(tokens, depth, dtype=dtype)
            line = f"{name:10}{tokens:7}"
            for title, product in columns.items():
                few = title == "linear" and tokens > 64
                slow = title == "torch" and dtype == torch.bfloat16 and tokens > 16
                if few or (slow and kernels.variant != "avx512bf16"):
                    line += f"{'-':>22}"
                    continue
                turn = iter(weights * 1000)

                def call(f: Callable[..., object] = product) -> None:
                    f(x, next(turn))  # noqa: B023

                taken = seconds(call)
                gigabytes = weights[0].nbytes / taken / 1e9
                gigaflops = 2 * tokens * rows * depth / taken / 1e9
                line += f"{gigabytes:9.1f}GB/s{gigaflops:7.0f}GF"
            print(line, flush=True)


def attention(kernels: Kernels, dtype: torch.dtype) -> None:
    """Print paged attention of one layer: prefill and decode at several lengths."""
    print(f"\n{'attention':28}{'time':>12}{'rate':>14}{'torch sdpa':>14}")
    page = 16
    for rows, queries, length in (
        (1, 512, 512),
        (1, 512, 1024),
        (1, 1, 1024),
        (16, 1, 1024),
        (1, 1, 16384),
    ):
        pages = -(-length // page)
        pool = torch.randn(2, rows * pages + 1, page, KV_HEADS, HEAD_DIM).to(dtype)
        table = (torch.randperm(rows * pages) + 1).view(rows, pages).int()
        start = torch.arange(rows + 1).int() * queries
        lens = torch.full((rows,), length).int()
        plan = kernels.plan_attention(start, lens, table, page)
        query = torch.randn(rows * queries, HEADS, HEAD_DIM).to(dtype)
        taken = seconds(lambda: kernels.attention(plan, query, *pool, HEAD_DIM**-0.5))  # noqa: B023
        dense_q = torch.randn(rows, HEADS, queries, HEAD_DIM).to(dtype)
        dense_kv = torch.randn(rows, HEADS, length, HEAD_DIM).to(dtype)
        theirs = seconds(
            lambda: F.scaled_dot_product_attention(dense_q, dense_kv, dense_kv)  # noqa: B023
        )
        if queries > 1:
            pairs = rows * HEADS * queries * (length - (queries - 1) / 2)
            rate = f"{4 * pairs * HEAD_DIM / taken / 1e9:9.0f}GF"
        else:
            read = rows * length * KV_HEADS * HEAD_DIM * 2 * pool.element_size()
            rate = f"{read / taken / 1e9:7.1f}GB/s"
        title = f"{rows} x {queries} after {length - queries}"
        print(f"{title:28}{taken * 1e6:10.0f}us{rate:>14}{theirs * 1e6:12.0f}us")


def small(kernels: Kernels, dtype: torch.dtype) -> None:
    """Print what a call costs when there is next to nothing to compute, and at 512 tokens."""
    print(f"\n{'operation':16}{'1 token':>12}{'512 tokens':>14}")
    weight = torch.ones(HIDDEN, dtype=dtype)
    tiny = torch.ones(64, 64, dtype=dtype)
    cos_sin = torch.ones(4096, HEAD_DIM)
    cache = torch.zeros(64, 16, KV_HEADS, HEAD_DIM, dtype=dtype)
    lines: dict[str, list[float]] = {}
    for tokens in (1, 512):
        x, residual = (
            torch.ones(tokens, HIDDEN, dtype=dtype),
            torch.ones(tokens, HIDDEN, dtype=dtype),
        )
        gate_up = torch.ones(tokens, 2 * INNER, dtype=dtype)
        query = torch.ones(tokens, HEADS, HEAD_DIM, dtype=dtype)
        key = torch.ones(tokens, KV_HEADS, HEAD_DIM, dtype=dtype)
        at = torch.arange(tokens)
        calls: dict[str, Callable[[], object]] = {
            "rms_norm": lambda: kernels.rms_norm(x, weight, 1e-6),  # noqa: B023
            "add_rms_norm": lambda: kernels.add_rms_norm(x, residual, weight, 1e-6),  # noqa: B023
            "rope": lambda: kernels.rope(query, key, at, cos_sin),  # noqa: B023
            "gated_act": lambda: kernels.gated_act(gate_up, "silu"),  # noqa: B023
            "kv_write": lambda: kernels.kv_write(key, key, cache, cache, at),  # noqa: B023
            "linear 64 x 64": lambda: kernels.linear(tiny[:1], tiny),
        }
        for name, call in calls.items():
            lines.setdefault(name, []).append(seconds(call, 0.1))
    for name, times in lines.items():
        print(f"{name:16}" + "".join(f"{t * 1e6:10.1f}us  " for t in times))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variant", default="best")
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kernels = Kernels(torch.Tensor, args.variant, args.threads)
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[args.dtype]
    block = torch.ones(2**28)
    print(f"{kernels.variant}, {kernels.num_threads} threads, {args.dtype}; ", end="")
    print(f"bandwidth {block.nbytes / seconds(block.sum) / 1e9:.1f} GB/s\n")
    del block
    products(kernels, dtype)
    attention(kernels, dtype)
    small(kernels, dtype)


if __name__ == "__main__":
    main()
