"""Paged attention in plain torch, row by row: the oracle of every other backend, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.batch import ForwardBatch

QUERY_BLOCK = 256
"""Queries scored at once; bounds the memory of the scores to QUERY_BLOCK × heads × kv_len f32."""


class ReferenceAttention:
    """The backend "reference": serves every spec, page size, dtype and device; computes in f32."""

    name = "reference"

    def __init__(self, specs: Sequence[AttentionSpec], page_size: int) -> None:
        self._specs = tuple(specs)
        self._page_size = page_size
        self._batch: ForwardBatch | None = None

    def plan(self, batch: ForwardBatch) -> None:
        """See ``AttentionBackend.plan``."""
        self._batch = batch

    def run(
        self, layer: int, query: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
    ) -> torch.Tensor:
        """See ``AttentionBackend.run``."""
        batch = self._batch
        assert batch is not None, "run() before plan()"
        spec = self._specs[layer]
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        starts = batch.query_start_host.tolist()
        page_table = torch.from_numpy(batch.page_table_host).to(query.device)
        for row, kv_len in enumerate(batch.kv_lens_host.tolist()):
            begin, end = starts[row], starts[row + 1]
            pages = page_table[row, : -(-kv_len // self._page_size)]
            key = k_cache[pages].flatten(0, 1)[:kv_len].float()
            value = v_cache[pages].flatten(0, 1)[:kv_len].float()
            first_position = kv_len - (end - begin)
            for lo in range(begin, end, QUERY_BLOCK):
                hi = min(lo + QUERY_BLOCK, end)
                out[lo:hi] = attend(
                    query[lo:hi].float(), key, value, first_position + lo - begin, spec
                )
        return out


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    first_position: int,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Return attention [Tq, Hq, D] of one sequence's queries [Tq, Hq, D], the first of which is at
    ``first_position``, over all its keys and values [S, Hk, D] from position 0."""
    num_queries, _, dim = query.shape
    grouped = query.view(num_queries, spec.num_kv_heads, -1, dim)
    scores = torch.einsum("qhgd,khd->hgqk", grouped, key) * spec.scale
    if spec.softcap:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    query_at = torch.arange(first_position, first_position + num_queries, device=query.device)
    key_at = torch.arange(key.shape[0], device=query.device)
    seen = key_at <= query_at[:, None]
    if spec.window:
        seen &= key_at > query_at[:, None] - spec.window
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hgqk,khd->qhgd", weights, value).reshape(query.shape)
