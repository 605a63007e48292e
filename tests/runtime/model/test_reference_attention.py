"""The oracle of attention backends against torch's own attention with an explicit mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_runs import make_batch

from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.attention.reference import QUERY_BLOCK, ReferenceAttention, attend

rows = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 30)), min_size=1, max_size=4
)  # (new tokens, tokens before them)


@settings(max_examples=60, deadline=None)
@given(
    rows=rows,
    page_size=st.sampled_from([1, 3, 16]),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    window=st.sampled_from([0, 1, 2, 7, 100]),
    softcap=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 1 << 16),
)
def test_a_paged_ragged_batch_is_masked_dense_attention(
    rows: list[tuple[int, int]],
    page_size: int,
    kv_heads: int,
    group: int,
    window: int,
    softcap: float,
    seed: int,
) -> None:
    spec = AttentionSpec(kv_heads * group, kv_heads, 8, 0.3, window, softcap)
    generator = torch.Generator().manual_seed(seed)
    query_lens = [new for new, _ in rows]
    kv_lens = [new + before for new, before in rows]
    counts = [-(-length // page_size) for length in kv_lens]
    order = np.random.default_rng(seed).permutation(np.arange(1, 1 + sum(counts)))
    page_lists = [part.tolist() for part in np.split(order, np.cumsum(counts)[:-1])]
    pools = torch.full((2, 1 + sum(counts), page_size, kv_heads, 8), float("nan"))
    dense = []
    for length, pages in zip(kv_lens, page_lists, strict=True):
        kv = torch.randn((2, length, kv_heads, 8), generator=generator)
        at = np.arange(length)
        pools[:, np.array(pages)[at // page_size], at % page_size] = kv
        dense.append(kv)
    query = torch.randn((sum(query_lens), spec.num_heads, 8), generator=generator)
    backend = ReferenceAttention([replace(spec, window=1), spec], page_size)
    backend.plan(make_batch(query_lens, kv_lens, page_lists, page_size))
    actual = backend.run(1, query, pools[0], pools[1])
    begin = 0
    for new, length, (key, value) in zip(query_lens, kv_lens, dense, strict=True):
        expected = dense_attention(query[begin : begin + new], key, value, spec, length - new)
        torch.testing.assert_close(actual[begin : begin + new], expected, rtol=1e-4, atol=1e-5)
        begin += new


def test_long_queries_are_the_same_in_blocks() -> None:
    spec = AttentionSpec(2, 1, 8, 0.3, window=50)
    length = QUERY_BLOCK + 30
    generator = torch.Generator().manual_seed(0)
    query = torch.randn((length, 2, 8), generator=generator)
    kv = torch.randn((2, length, 1, 1, 8), generator=generator)
    backend = ReferenceAttention([spec], 1)
    backend.plan(make_batch([length], [length], [list(range(length))], 1))
    actual = backend.run(0, query, kv[0], kv[1])
    torch.testing.assert_close(actual, attend(query, kv[0, :, 0], kv[1, :, 0], 0, spec))


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spec: AttentionSpec,
    num_before: int,
) -> torch.Tensor:
    """Torch's attention, one (query, key) pair of the mask at a time; softcap through the mask."""
    mask = torch.full((len(query), len(key)), float("-inf"))
    for i in range(len(query)):
        at = num_before + i
        lowest = 0 if spec.window == 0 else max(0, at - spec.window + 1)
        mask[i, lowest : at + 1] = 0.0
    group = spec.num_heads // spec.num_kv_heads
    out = []
    for head in range(spec.num_heads):
        q, k, v = query[:, head], key[:, head // group], value[:, head // group]
        bias = mask
        if spec.softcap:
            scores = q @ k.T * spec.scale
            bias = mask + spec.softcap * (scores / spec.softcap).tanh() - scores
        out.append(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=spec.scale))
    return torch.stack(out, dim=1)
