"""The Triton backend against the reference: on a CUDA device, else in Triton's interpreter."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch
from paged_runs import make_batch
from shared_prefix_batches import random_inputs, shared_prefix_batch

from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.attention.reference import ReferenceAttention

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available() and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip(
        "Triton's interpreter takes arrays of one element for numbers, numpy 2.4 refuses that",
        allow_module_level=True,
    )

from radixrt.runtime.attention.triton import TritonAttention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def spec(heads: int, kv_heads: int, head_dim: int, window: int, softcap: float) -> AttentionSpec:
    return AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, window, softcap)


@pytest.mark.parametrize("queue_tokens", [1, 1000])
@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize(
    ("page_size", "layer"),
    [
        (16, spec(8, 2, 64, 0, 0.0)),
        (4, spec(14, 2, 32, 0, 0.0)),
        (1, spec(4, 4, 16, 0, 0.0)),
        (16, spec(8, 2, 64, 20, 0.0)),
        (16, spec(8, 2, 64, 0, 5.0)),
        (16, spec(4, 1, 96, 0, 0.0)),
    ],
)
def test_results_are_those_of_the_reference(
    page_size: int, layer: AttentionSpec, group: bool, queue_tokens: int
) -> None:
    """Of a second run too, which finds the queue as the first one left it."""
    batch, num_pages = shared_prefix_batch(page_size, prefills=(17, 40), device=DEVICE)
    inputs = [t.to(DEVICE) for t in random_inputs(layer, batch, num_pages, page_size)]
    reference = ReferenceAttention([layer], page_size)
    reference.plan(batch)
    expected = reference.run(0, *inputs)
    ours = TritonAttention([layer], page_size, DEVICE, group=group, queue_tokens=queue_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours.plan(batch)
        for _ in range(2):
            torch.testing.assert_close(ours.run(0, *inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 63, 700, 3000])
def test_a_lone_token_of_any_length_has_the_reference_s_result_in_memory_of_a_fixed_size(
    length: int,
) -> None:
    """Its tiles have a shape of their own; a recorded graph of one token takes all lengths."""
    layer = spec(8, 2, 64, 0, 0.0)
    num_pages = -(-length // 16)
    batch = make_batch([1], [length], [list(range(1, num_pages + 1))], 16, device=DEVICE)
    inputs = [t.to(DEVICE) for t in random_inputs(layer, batch, num_pages + 1, 16)]
    reference = ReferenceAttention([layer], 16)
    reference.plan(batch)
    ours = TritonAttention([layer], 16, DEVICE)
    room, partials = ours.room(1, 200, 201), ours.num_partials(1)
    arrays = ours.arrays(
        batch.query_start_host, batch.kv_lens_host, batch.page_table_host, partials
    )
    assert arrays is not None
    tensors = [torch.zeros(r.shape, dtype=torch.int32, device=DEVICE) for r in room]
    for tensor, array in zip(tensors, arrays, strict=True):
        tensor[: len(array)] = torch.from_numpy(array)
    ours.bind(tensors, partials, batch.positions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = ours.run(0, *inputs)
    torch.testing.assert_close(got, reference.run(0, *inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("queue_tokens", [1, 1000])
def test_memory_of_a_fixed_size_serves_one_batch_after_another(queue_tokens: int) -> None:
    layer, page_size = spec(8, 2, 64, 0, 0.0), 16
    ours = TritonAttention([layer], page_size, DEVICE, queue_tokens=queue_tokens)
    room = [array.copy() for array in ours.room(12, 11, 1000)]
    for seed, groups in ((0, 4), (1, 2), (2, 3)):
        batch, num_pages = shared_prefix_batch(page_size, groups=groups, seed=seed, device=DEVICE)
        inputs = [t.to(DEVICE) for t in random_inputs(layer, batch, num_pages, page_size)]
        reference = ReferenceAttention([layer], page_size)
        reference.plan(batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arrays = ours.arrays(
                batch.query_start_host,
                batch.kv_lens_host,
                batch.page_table_host,
                ours.num_partials(12),
            )
            assert arrays is not None
            for fixed, new in zip(room, arrays, strict=True):
                fixed[: len(new)] = new
            tensors = [torch.from_numpy(array).to(DEVICE) for array in room]
            ours.bind(tensors, ours.num_partials(12), batch.positions)
            got = ours.run(0, *inputs)
        torch.testing.assert_close(got, reference.run(0, *inputs), rtol=1e-4, atol=1e-5)


def test_a_plan_with_too_many_partial_results_is_refused() -> None:
    ours = TritonAttention([spec(8, 2, 64, 0, 0.0)], 16, DEVICE)
    batch, _ = shared_prefix_batch(16, groups=4)
    host = batch.query_start_host, batch.kv_lens_host, batch.page_table_host
    assert ours.arrays(*host, [1000]) is not None
    assert ours.arrays(*host, [3]) is None
