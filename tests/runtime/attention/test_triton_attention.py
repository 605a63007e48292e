"""The Triton backend against the reference: on a CUDA device, else in Triton's interpreter."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch
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

from radixrt.runtime.attention.triton import PlanTooLarge, TritonAttention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def spec(heads: int, kv_heads: int, head_dim: int, window: int, softcap: float) -> AttentionSpec:
    return AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, window, softcap)


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
    page_size: int, layer: AttentionSpec, group: bool
) -> None:
    batch, num_pages = shared_prefix_batch(page_size, prefills=(17, 40))
    inputs = random_inputs(layer, batch, num_pages, page_size)
    reference = ReferenceAttention([layer], page_size)
    reference.plan(batch)
    ours = TritonAttention([layer], page_size, DEVICE, group=group)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours.plan(batch)
        got = ours.run(0, *inputs)
    torch.testing.assert_close(got, reference.run(0, *inputs), rtol=1e-4, atol=1e-5)


def test_memory_of_a_fixed_size_serves_one_batch_after_another() -> None:
    layer, page_size = spec(8, 2, 64, 0, 0.0), 16
    ours = TritonAttention([layer], page_size, DEVICE, recorded_rows=12)
    for seed, groups in ((0, 4), (1, 2), (2, 3)):
        batch, num_pages = shared_prefix_batch(page_size, groups=groups, seed=seed)
        inputs = random_inputs(layer, batch, num_pages, page_size)
        reference = ReferenceAttention([layer], page_size)
        reference.plan(batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours.plan(batch)
            got = ours.run(0, *inputs)
        torch.testing.assert_close(got, reference.run(0, *inputs), rtol=1e-4, atol=1e-5)


def test_a_batch_that_does_not_fit_the_fixed_memory_is_refused() -> None:
    layer = spec(8, 2, 64, 0, 0.0)
    ours = TritonAttention([layer], 16, DEVICE, recorded_rows=1)
    batch, _ = shared_prefix_batch(16, groups=200)
    with pytest.raises(PlanTooLarge):
        ours.plan(batch)
