"""The providers "cpu" against the reference ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from radixrt.errors import ConfigError
from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.attention.reference import ReferenceAttention
from radixrt.runtime.batch import ForwardBatch
from radixrt.runtime.ops.reference import ReferenceOps

native = pytest.importorskip("radixrt._native")

from radixrt.runtime.attention.cpu import CpuAttention  # noqa: E402
from radixrt.runtime.ops.cpu import FEW_ROWS, CpuOps  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16]
CPU = torch.device("cpu")


@pytest.fixture(params=native.cpu_features())
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype
    tolerance = 1e-4 if actual.dtype == torch.float32 else 4e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 7, FEW_ROWS, FEW_ROWS + 1, 130])
def test_a_layer_of_operations_equals_the_reference(
    variant: str, tokens: int, dtype: torch.dtype
) -> None:
    def layer(ops: CpuOps | ReferenceOps) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(*shape, generator=generator) * scale).to(dtype)

        x, residual = draw(tokens, 64), draw(tokens, 64)
        normed = ops.rms_norm(x, draw(64), 1e-6, add_one=True)
        qkv = ops.linear(normed, draw(96, 64, scale=0.1), draw(96))
        query, key, value = qkv.view(tokens, -1, 16).split_with_sizes((4, 1, 1), 1)
        cos_sin = draw(200, 16).float()
        ops.rope(query, key, torch.arange(tokens), cos_sin)
        caches = torch.zeros(2, 2, 40, 4, 1, 16, dtype=dtype)
        slots = torch.randperm(160, generator=generator)[:tokens]
        ops.kv_write(key, value, caches[0, 1], caches[1, 1], slots)
        copies = torch.tensor([[3, 5, 2], [3, 7, 4], [2, 0, 0]], dtype=torch.int32)
        ops.copy_pages(caches[0], caches[1], *copies.T)
        gated = ops.gated_act(ops.linear(normed, draw(80, 64, scale=0.1)), "gelu_tanh")
        out = ops.linear(gated, draw(64, 40, scale=0.1))
        normed, total = ops.add_rms_norm(out, residual, draw(64), 1e-6)
        logits = ops.linear(normed, draw(50, 64, scale=0.1)).float()
        ops.apply_token_mask(logits, torch.full((tokens, 2), 0x0F0F0F0F, dtype=torch.int32))
        return [query, key, caches, normed, total, logits.to(dtype)]

    ours, theirs = layer(CpuOps(variant, 2)), layer(ReferenceOps())
    for actual, expected in zip(ours, theirs, strict=True):
        close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (20, 0.0), (0, 10.0)])
def test_attention_equals_the_reference(
    variant: str, window: int, softcap: float, dtype: torch.dtype
) -> None:
    spec = AttentionSpec(6, 2, 32, 32**-0.5, window, softcap)
    page_size = 16
    query_start = np.array([0, 1, 51, 53, 61], np.int32)
    kv_lens = np.array([33, 50, 90, 8], np.int32)
    page_table = np.zeros((4, 6), np.int32)
    pages = iter(np.random.default_rng(0).permutation(20) + 1)
    for row, length in enumerate(kv_lens):
        for i in range(-(-length // page_size)):
            page_table[row, i] = next(pages)
    empty = torch.zeros(0, dtype=torch.int64)
    batch = ForwardBatch(
        empty, empty, empty, torch.from_numpy(query_start), torch.from_numpy(kv_lens),
        empty, query_start, kv_lens, page_table,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(61, 6, 32, generator=generator).to(dtype)
    caches = torch.randn(2, 21, page_size, 2, 32, generator=generator).to(dtype)
    ours = CpuAttention([spec], page_size, CPU, dtype, variant=variant, num_threads=2)
    theirs = ReferenceAttention([spec], page_size)
    for backend in (ours, theirs):
        backend.plan(batch)
    close(ours.run(0, query, *caches), theirs.run(0, query, *caches))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda spec: CpuAttention([spec], 16, torch.device("cuda"), torch.float32), "cuda"),
        (lambda spec: CpuAttention([spec], 16, CPU, torch.float16), "float16"),
        (
            lambda _: CpuAttention([AttentionSpec(5, 2, 8, 1.0)], 16, CPU, torch.float32),
            "multiple of num_kv_heads",
        ),
    ],
)
def test_attention_refuses_what_it_cannot_serve_when_constructed(
    build: Callable[[AttentionSpec], CpuAttention], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(AttentionSpec(4, 2, 8, 1.0))
