"""Triton's operations against the reference: on a CUDA device, else in Triton's interpreter."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from radixrt.runtime.ops.reference import ReferenceOps
from radixrt.runtime.ops.sampler import SamplingRows

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available() and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip(
        "Triton's interpreter takes arrays of one element for numbers, numpy 2.4 refuses that",
        allow_module_level=True,
    )

from radixrt.runtime.ops.triton import MIN_ADDED_ROWS, TritonOps

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
HALF = torch.bfloat16 if ON_GPU else torch.float16  # the interpreter has no bf16 products
REFERENCE = ReferenceOps()


@pytest.fixture(scope="module")
def ops() -> TritonOps:
    return TritonOps(DEVICE)


@pytest.fixture(autouse=True)
def quiet_interpreter() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def draw(*shape: int, dtype: torch.dtype = HALF, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-2 of the whole, as two roundings of half precision are."""
    assert got.shape == expected.shape
    error = (got.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-9)
    assert float(error) < 1e-2


@pytest.mark.parametrize("rows", [1, 3, 16, 32, 48] if ON_GPU else [1, 3, 24])
@pytest.mark.parametrize(
    ("width", "inner"),
    [(128, 256), (384, 1024), (4096, 4096), (24576, 512)] if ON_GPU else [(128, 256), (128, 2048)],
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_of_few_rows_is_the_product(
    ops: TritonOps, rows: int, width: int, inner: int, has_bias: bool
) -> None:
    x = draw(rows, inner, seed=1)
    weight, bias = draw(width, inner, scale=0.05, seed=2), draw(width, seed=3)
    assert ops._few_rows.serves(x, weight)
    for _ in range(2):  # a second time: partial sums are counted from zero again
        got = ops.linear(x, weight, bias if has_bias else None)
        wide = x.float() @ weight.float().T + (bias.float() if has_bias else 0)
        assert_close(got, wide)


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("rows", [1, 5, 33, 64, 70])
def test_a_gated_product_is_the_product_then_the_gate(ops: TritonOps, rows: int, act: str) -> None:
    x, weight, bias = draw(rows, 256, seed=1), draw(512, 256, scale=0.1, seed=2), draw(512, seed=3)
    for b in (None, bias):
        assert_close(ops.gated_linear(x, weight, b, act), REFERENCE.gated_linear(x, weight, b, act))


@pytest.mark.parametrize("rows", [5, 100, MIN_ADDED_ROWS])
def test_a_product_added_to_the_residual_is_the_product_then_the_sum(
    ops: TritonOps, rows: int
) -> None:
    x, weight, bias = draw(rows, 128, seed=1), draw(256, 128, scale=0.1, seed=2), draw(256, seed=3)
    residual, norm = draw(rows, 256, seed=4), draw(256, seed=5)
    for b in (None, bias) if rows < MIN_ADDED_ROWS else (None,):
        expected = REFERENCE.linear_add_rms_norm(x, weight, b, residual, norm, 1e-5, add_one=True)
        got = ops.linear_add_rms_norm(x, weight, b, residual.clone(), norm, 1e-5, add_one=True)
        for result, wanted in zip(got, expected, strict=True):
            assert_close(result, wanted)


def test_rows_that_do_not_fit_go_to_the_library(ops: TritonOps) -> None:
    x, weight = draw(300, 96), draw(50, 96)
    assert not ops._few_rows.serves(x, weight)
    assert_close(ops.linear(x, weight), REFERENCE.linear(x, weight))
    empty = draw(4, 128)[:0]
    assert ops.linear(empty, draw(128, 128)).shape == (0, 128)


@pytest.mark.parametrize("add_one", [False, True])
def test_norms_are_the_references(ops: TritonOps, add_one: bool) -> None:
    x, residual, weight = draw(5, 96), draw(5, 96, seed=1), draw(96, seed=2)
    expected = REFERENCE.add_rms_norm(x, residual, weight, 1e-5, add_one=add_one)
    got = ops.add_rms_norm(x, residual.clone(), weight, 1e-5, add_one=add_one)
    assert_close(got[0], expected[0])
    assert_close(got[1], expected[1])
    heads = draw(4, 7, 32)[:, 2:5]
    weight = draw(32, seed=3)
    assert_close(
        ops.rms_norm(heads, weight, 1e-5, add_one=add_one),
        REFERENCE.rms_norm(heads, weight, 1e-5, add_one=add_one),
    )


@pytest.mark.parametrize("heads", [(4, 2, 32), (7, 1, 48), (3, 3, 16)])
def test_rotation_and_cache_are_the_references(ops: TritonOps, heads: tuple[int, int, int]) -> None:
    num_heads, num_kv_heads, dim = heads
    qkv = draw(6, num_heads + 2 * num_kv_heads, dim)
    table = draw(50, dim, dtype=torch.float32)
    positions = torch.tensor([3, 0, 49, 7, 8, 1], device=DEVICE)
    slots = torch.tensor([9, 4, 30, 2, 3, 17], device=DEVICE)
    results = []
    for provider in (ops, REFERENCE):
        query, key, value = qkv.clone().split_with_sizes((num_heads, num_kv_heads, num_kv_heads), 1)
        caches = [torch.zeros(5, 8, num_kv_heads, dim, dtype=HALF, device=DEVICE) for _ in "kv"]
        provider.rope_kv_write(query, key, value, positions, table, *caches, slots)
        results.append((query, *caches))
    for got, expected in zip(*results, strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize("heads", [(1, 16), (3, 24), (8, 128)])
def test_copied_pages_are_the_references(ops: TritonOps, heads: tuple[int, int]) -> None:
    pools = draw(2, 2, 9, 16, *heads)
    copies = torch.tensor(
        [(1, 8, 16), (1, 2, 1), (3, 4, 7), (5, 6, 0)], dtype=torch.int32, device=DEVICE
    )
    expected = pools.clone()
    REFERENCE.copy_pages(*expected, *copies.T)
    ops.copy_pages(*pools, *copies.T.contiguous())
    assert torch.equal(pools, expected)


@pytest.mark.parametrize("vocab_size", [70, 72, 4128, 4200])
def test_masked_tokens_are_minus_infinity(ops: TritonOps, vocab_size: int) -> None:
    """Whatever the bits beyond the vocabulary are; words and rows that allow all or nothing among
    them."""
    logits = draw(5, vocab_size, dtype=torch.float32)
    shape = (5, -(-vocab_size // 32))
    mask = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device=DEVICE)
    mask[0, ::2], mask[1, ::3], mask[2, -1], mask[3], mask[4] = -1, 0, 0, -1, 0
    expected = logits.clone()
    REFERENCE.apply_token_mask(expected, mask)
    ops.apply_token_mask(logits, mask)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("vocab_size", [50, 20_000])
def test_tokens_are_those_of_the_reference(
    ops: TritonOps, dtype: torch.dtype, vocab_size: int
) -> None:
    """Same seeds, same tokens, whatever filters the rows beside a row have. Rounding of a sum may
    move a choice to the neighbour: one in fifty rows may differ."""
    count = 100 if ON_GPU else 12
    rng = np.random.default_rng(vocab_size)
    logits = draw(count, vocab_size, dtype=dtype, scale=3)

    def column(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(rng.choice(values, count), dtype=dtype, device=DEVICE)

    rows = SamplingRows(
        temperature=column([0, 0.3, 1, 2]),
        top_p=column([0.1, 0.9, 0.999, 1]),
        top_k=column([0, 1, 7, 45], torch.int32),
        min_p=column([0, 0, 0.05, 0.5]),
        uniform=torch.tensor(rng.random(count, np.float32), device=DEVICE),
    )
    before = logits.clone()
    got, expected = ops.sample(logits, rows), REFERENCE.sample(logits, rows)
    assert torch.equal(logits, before)
    assert int((got != expected).sum()) <= count // 50
    greedy = rows.temperature == 0
    assert torch.equal(got[greedy], expected[greedy])


def test_a_row_of_equal_or_impossible_logits_yields_a_token(ops: TritonOps) -> None:
    logits = torch.full((3, 100), -torch.inf, device=DEVICE)
    logits[1] = 1.0
    logits[2, 63] = 0.0
    ones = torch.ones(3, device=DEVICE)
    rows = SamplingRows(ones, ones * 0.9, ones.int() * 5, ones * 0, ones * 0.999)
    tokens = ops.sample(logits, rows).tolist()
    assert all(0 <= token < 100 for token in tokens)
    assert tokens[2] == 63
