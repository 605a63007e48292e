"""Native paged attention against float64 on ragged batches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixrt.errors import InvalidArgument

native = pytest.importorskip("radixrt._native")

Kernels = native.Kernels
VARIANTS = [(v, n) for v in native.cpu_features() for n in (1, 2)]


class Batch:
    """Random rows over a shuffled pool; pages of no row hold NaN."""

    def __init__(
        self, rows: list[tuple[int, int]], page_size: int, heads: int, kv_heads: int, dim: int,
        dtype: torch.dtype, seed: int = 0,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        self.rows = rows
        self.page_size = page_size
        self.query_start = torch.tensor([0, *(q for q, _ in rows)]).cumsum(0).int()
        self.kv_lens = torch.tensor([past + q for q, past in rows]).int()
        num_pages = [-(-(past + q) // page_size) for q, past in rows]
        free = torch.randperm(sum(num_pages), generator=generator) + 1
        self.page_table = torch.zeros(len(rows), max(num_pages), dtype=torch.int32)
        pool = torch.full((2, 2, sum(num_pages) + 2, page_size, kv_heads, dim), math.nan)
        self.keys, self.values = [], []
        for row, n in enumerate(num_pages):
            mine, free = free[:n], free[n:]
            self.page_table[row, :n] = mine
            length = sum(rows[row])
            for half, kept in ((0, self.keys), (1, self.values)):
                dense = torch.randn(length, kv_heads, dim, generator=generator).to(dtype)
                paged = torch.full((n * page_size, kv_heads, dim), math.nan)
                paged[:length] = dense
                pool[half, 1, mine] = paged.view(n, page_size, kv_heads, dim)
                kept.append(dense)
        pool = pool.to(dtype)
        self.k_cache, self.v_cache = pool[0, 1], pool[1, 1]
        fused = torch.randn(int(self.query_start[-1]), heads + 3, dim, generator=generator)
        self.query = fused.to(dtype)[:, 1:-2]

    def run(self, kernels: Kernels, scale: float, window: int, softcap: float) -> torch.Tensor:
        plan = kernels.plan_attention(
            self.query_start, self.kv_lens, self.page_table, self.page_size
        )
        return kernels.attention(
            plan, self.query, self.k_cache, self.v_cache, scale, window, softcap
        )

    def expected(self, scale: float, window: int, softcap: float) -> torch.Tensor:
        parts = []
        for row, (queries, past) in enumerate(self.rows):
            start = int(self.query_start[row])
            query = self.query[start : start + queries].double()
            group = query.shape[1] // self.keys[row].shape[1]
            keys = self.keys[row].double().repeat_interleave(group, 1)
            values = self.values[row].double().repeat_interleave(group, 1)
            scores = torch.einsum("qhd,khd->hqk", query, keys) * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            position = torch.arange(past, past + queries)[:, None]
            key = torch.arange(past + queries)[None]
            hidden = key > position
            if window:
                hidden |= key <= position - window
            weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
            parts.append(torch.einsum("hqk,khd->qhd", weights, values))
        return torch.cat(parts)

    def check(self, kernels: Kernels, scale: float, window: int = 0, softcap: float = 0.0) -> None:
        result = self.run(kernels, scale, window, softcap)
        assert result.dtype == self.query.dtype
        tolerance = 2e-5 if result.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(
            result.double(), self.expected(scale, window, softcap), rtol=tolerance, atol=tolerance
        )


ROW = st.tuples(st.integers(1, 40), st.integers(0, 150)) | st.tuples(
    st.just(1), st.integers(0, 400)
)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda p: f"{p[0]}-{p[1]}t")
@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(ROW, min_size=1, max_size=5),
    page_size=st.sampled_from([1, 4, 16]),
    heads=st.sampled_from([(1, 1), (4, 2), (7, 1), (6, 3), (14, 2)]),
    dim=st.sampled_from([8, 16, 32, 40, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    window=st.sampled_from([0, 0, 1, 5, 70]),
    softcap=st.sampled_from([0.0, 0.0, 5.0]),
)
def test_ragged_batches_match_float64(
    variant: tuple[str, int], rows: list[tuple[int, int]], page_size: int, heads: tuple[int, int],
    dim: int, dtype: torch.dtype, window: int, softcap: float,
) -> None:  # fmt: skip
    batch = Batch(rows, page_size, *heads, dim, dtype)
    batch.check(Kernels(torch.Tensor, *variant), dim**-0.5, window, softcap)


@pytest.mark.parametrize("variant", native.cpu_features())
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_dims_of_models(variant: str, dim: int, dtype: torch.dtype) -> None:
    batch = Batch([(70, 30), (1, 99), (1, 0)], 16, 4, 2, dim, dtype)
    batch.check(Kernels(torch.Tensor, variant, 2), dim**-0.5)


@pytest.mark.parametrize("variant", native.cpu_features())
@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("window", [0, 300])
def test_long_decode_split_over_threads_matches_float64(
    variant: str, threads: int, window: int
) -> None:
    batch = Batch([(1, 1500)], 16, 4, 1, 64, torch.float32)
    batch.check(Kernels(torch.Tensor, variant, threads), 0.125, window)
    batch = Batch([(3, 700)], 16, 4, 1, 32, torch.float32)
    batch.check(Kernels(torch.Tensor, variant, threads), 0.2, window)


def test_large_scores_do_not_overflow() -> None:
    batch = Batch([(5, 200), (1, 200)], 16, 2, 1, 32, torch.float32)
    batch.query *= 300
    for variant in native.cpu_features():
        result = batch.run(Kernels(torch.Tensor, variant, 1), 1.0, 0, 0.0)
        torch.testing.assert_close(
            result.double(), batch.expected(1.0, 0, 0.0), rtol=1e-3, atol=1e-3
        )


def test_a_batch_without_rows_gives_an_empty_result() -> None:
    kernels = Kernels(torch.Tensor)
    empty = torch.zeros(0, dtype=torch.int32)
    plan = kernels.plan_attention(
        torch.zeros(1, dtype=torch.int32), empty, torch.zeros(0, 1).int(), 4
    )
    cache = torch.zeros(2, 4, 1, 8)
    assert kernels.attention(plan, torch.zeros(0, 2, 8), cache, cache, 1.0).shape == (0, 2, 8)


def test_plans_refuse_tables_that_do_not_cover_the_rows() -> None:
    kernels = Kernels(torch.Tensor)
    start, lens = torch.tensor([0, 2]).int(), torch.tensor([9]).int()
    table = torch.tensor([[1, 2]]).int()
    for argument, call in (
        ("kv_lens", lambda: kernels.plan_attention(start, lens, table, 4)),
        ("kv_lens", lambda: kernels.plan_attention(start, torch.tensor([1]).int(), table, 8)),
        ("query_start", lambda: kernels.plan_attention(start + 1, lens, table, 8)),
        ("query_start", lambda: kernels.plan_attention(start.long(), lens, table, 8)),
        ("page_table", lambda: kernels.plan_attention(start, lens, -table, 8)),
        ("page_table", lambda: kernels.plan_attention(start, lens, table.long(), 8)),
    ):
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert caught.value.argument == argument


def test_attention_refuses_pools_that_do_not_fit_the_plan() -> None:
    kernels = Kernels(torch.Tensor)
    plan = kernels.plan_attention(
        torch.tensor([0, 2]).int(), torch.tensor([9]).int(), torch.tensor([[1, 2]]).int(), 8
    )
    query, cache = torch.zeros(2, 4, 8), torch.zeros(3, 8, 2, 8)
    assert kernels.attention(plan, query, cache, cache, 1.0).shape == (2, 4, 8)
    for argument, arguments in (
        ("query", (query[:1], cache, cache)),
        ("k_cache", (query, cache[:2], cache)),
        ("k_cache", (query, cache[:, :4], cache)),
        ("k_cache", (query[:, :3], cache, cache)),
        ("v_cache", (query, cache, cache.bfloat16())),
        ("v_cache", (query, cache, cache[..., :4])),
    ):
        with pytest.raises(InvalidArgument) as caught:
            kernels.attention(plan, *arguments, 1.0)
        assert caught.value.argument == argument
