"""Batches whose rows share pages as rows of a radix tree do: groups of decodes, and prefills."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from paged_runs import make_batch

from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.batch import ForwardBatch


def shared_prefix_batch(
    page_size: int,
    *,
    groups: int = 4,
    width: int = 3,
    prefills: tuple[int, ...] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[ForwardBatch, int]:
    """Return a batch and its number of pages: ``groups`` × ``width`` decoding rows with five pages
    common to all and three to each group, then a row for each of ``prefills`` new tokens."""
    rng = np.random.default_rng(seed)
    numbers = itertools.count(1)

    def new_pages(count: int) -> list[int]:
        return list(itertools.islice(numbers, count))

    common = new_pages(5)
    pages, query_lens, kv_lens = [], [], []
    for _ in range(groups):
        shared = common + new_pages(3)
        for _ in range(width):
            row = shared + new_pages(int(rng.integers(1, 4)))
            pages.append(row)
            query_lens.append(1)
            kv_lens.append(len(row) * page_size - int(rng.integers(0, page_size)))
    for num_new in prefills:
        pages.append(common + new_pages(-(-num_new // page_size)))
        query_lens.append(num_new)
        kv_lens.append(5 * page_size + num_new)
    return make_batch(query_lens, kv_lens, pages, page_size, device=device), next(numbers)


def random_inputs(
    spec: AttentionSpec, batch: ForwardBatch, num_pages: int, page_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (query, k_cache, v_cache) in f32."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_pages, page_size, spec.num_kv_heads, spec.head_dim)
    k_cache = torch.randn(shape, generator=generator)
    v_cache = torch.randn(shape, generator=generator)
    query = torch.randn((batch.num_tokens, spec.num_heads, spec.head_dim), generator=generator)
    return query, k_cache, v_cache
