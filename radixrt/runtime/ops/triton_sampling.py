"""From logits to tokens in one launch: a program a row, nothing is read back.

Top-k and top-p are thresholds on the logits, found bit by bit in the order that floats have as
integers (radix select): as many passes over a row as its type has bits, all of them in the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from radixrt.runtime.ops.sampler import SamplingRows

BLOCK = 8192


@triton.jit
def _order(x, BITS: tl.constexpr):
    # Unsigned integers in the order of the floats; of a type of 16 bits only the upper half counts.
    bits = x.to(tl.float32).to(tl.int32, bitcast=True)
    flipped = bits ^ ((bits >> 31) | -2147483648)
    return flipped.to(tl.uint32, bitcast=True) >> (32 - BITS)


@triton.jit
def _threshold(
    row, vocab_size, top, inverse, least, at_least, BY_MASS: tl.constexpr, BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the largest order t >= least such that the tokens from t up number (or, BY_MASS,
    weigh) at least ``at_least``."""
    found = tl.full([], 0, tl.uint32)
    for step in range(BITS):
        tried = found | (tl.full([], 1, tl.uint32) << (BITS - 1 - step))
        amount = tl.zeros([BLOCK], tl.float32)
        for begin in range(0, vocab_size, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            inside = columns < vocab_size
            x = tl.load(row + columns, mask=inside, other=float("-inf"))
            order = _order(x, BITS)
            counts = inside & (order >= tried) & (order >= least)
            if BY_MASS:
                amount += tl.where(counts, tl.exp((x.to(tl.float32) - top) * inverse), 0.0)
            else:
                amount += counts.to(tl.float32)
        found = tl.where(tl.sum(amount) >= at_least, tried, found)
    return tl.maximum(found, least)


@triton.jit
def _sample(
    logits,
    temperature,
    top_k,
    top_p,
    min_p,
    uniform,
    out,
    vocab_size,
    row_stride,
    BITS: tl.constexpr,
    IS_GREEDY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * row_stride
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_at = tl.zeros([BLOCK], tl.int32)
    for begin in tl.range(0, vocab_size, BLOCK, loop_unroll_factor=4):
        columns = begin + tl.arange(0, BLOCK)
        x = tl.load(row + columns, mask=columns < vocab_size, other=float("-inf")).to(tl.float32)
        is_better = x > best
        best = tl.where(is_better, x, best)
        best_at = tl.where(is_better, columns, best_at)
    top = tl.max(best)
    chosen = tl.min(tl.where(best == top, best_at, 2147483647))
    chosen = tl.minimum(chosen, vocab_size - 1)
    if not IS_GREEDY:
        heat = tl.load(temperature + index)
        if heat > 0:
            inverse = 1.0 / heat
            least = tl.full([], 0, tl.uint32)
            k = tl.load(top_k + index)
            if k > 0:
                least = _threshold(
                    row, vocab_size, top, inverse, least, k.to(tl.float32), False, BITS, BLOCK
                )
            nucleus = tl.load(top_p + index)
            if nucleus < 1.0:
                mass = tl.zeros([BLOCK], tl.float32)
                for begin in range(0, vocab_size, BLOCK):
                    columns = begin + tl.arange(0, BLOCK)
                    x = tl.load(row + columns, mask=columns < vocab_size, other=float("-inf"))
                    weight = tl.exp((x.to(tl.float32) - top) * inverse)
                    mass += tl.where(_order(x, BITS) >= least, weight, 0.0)
                wanted = nucleus * tl.sum(mass)
                least = _threshold(row, vocab_size, top, inverse, least, wanted, True, BITS, BLOCK)
            floor = tl.load(min_p + index)
            total = tl.zeros([BLOCK], tl.float32)
            for begin in range(0, vocab_size, BLOCK):
                columns = begin + tl.arange(0, BLOCK)
                x = tl.load(row + columns, mask=columns < vocab_size, other=float("-inf"))
                weight = tl.exp((x.to(tl.float32) - top) * inverse)
                total += tl.where((_order(x, BITS) >= least) & (weight >= floor), weight, 0.0)
            target = tl.load(uniform + index) * tl.sum(total)
            # The block in which the running sum passes the target, then the place in it.
            before = 0.0
            start = 0
            found = 0
            passed = 0.0
            for begin in range(0, vocab_size, BLOCK):
                columns = begin + tl.arange(0, BLOCK)
                x = tl.load(row + columns, mask=columns < vocab_size, other=float("-inf"))
                weight = tl.exp((x.to(tl.float32) - top) * inverse)
                keep = (_order(x, BITS) >= least) & (weight >= floor)
                amount = tl.sum(tl.where(keep, weight, 0.0))
                is_here = (found == 0) & (before + amount > target)
                start = tl.where(is_here, begin, start)
                passed = tl.where(is_here, before, passed)
                found = tl.where(is_here, 1, found)
                before += amount
            if found == 1:
                columns = start + tl.arange(0, BLOCK)
                x = tl.load(row + columns, mask=columns < vocab_size, other=float("-inf"))
                weight = tl.exp((x.to(tl.float32) - top) * inverse)
                keep = (_order(x, BITS) >= least) & (weight >= floor) & (columns < vocab_size)
                through = passed + tl.cumsum(tl.where(keep, weight, 0.0))
                first = tl.min(tl.where(keep & (through > target), columns, 2147483647))
                last = tl.max(tl.where(keep, columns, 0))  # where rounding hid the first
                chosen = tl.where(first < vocab_size, first, last)
    tl.store(out + index, chosen.to(tl.int64))


def sample_rows(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """Return the chosen token of each row, int64 [K]; see ``sampler.sample``."""
    num_rows, vocab_size = logits.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    _sample[(num_rows,)](
        logits,
        rows.temperature,
        rows.top_k,
        rows.top_p,
        rows.min_p,
        rows.uniform,
        out,
        vocab_size,
        logits.stride(0),
        BITS=32 if logits.dtype is torch.float32 else 16,
        IS_GREEDY=not rows.is_random,
        BLOCK=BLOCK,
        num_warps=16,
    )
    return out
