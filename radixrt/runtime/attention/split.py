"""Attention by two backends: one for the rows that decode, one for the rows that prefill."""

from __future__ import annotations

import dataclasses

import torch

from radixrt.runtime.attention.base import AttentionBackend
from radixrt.runtime.batch import ForwardBatch


class SplitAttention:
    """Leading rows with one new token go to ``decode``, all others to ``prefill``.

    The scheduler puts rows in that order. Both write their part of one output. With ``few``, a step
    of which prefilling is less than half goes to ``decode`` as a whole: few prefilling tokens do
    not pay for a launch of their own and a copy of the outputs, and a backend that groups rows
    reads a prefix once that they share with those that decode.
    """

    def __init__(
        self, decode: AttentionBackend, prefill: AttentionBackend, *, few: bool = False
    ) -> None:
        self.name = f"{decode.name} decode, {prefill.name} prefill"
        self._few = few
        self.decode = decode
        self.prefill = prefill
        self._num_decode = 0
        self._num_tokens = 0

    def plan(self, batch: ForwardBatch) -> None:
        """See ``AttentionBackend.plan``."""
        starts = batch.query_start_host
        longer = (starts[1:] - starts[:-1] > 1).nonzero()[0]
        self._num_tokens = batch.num_tokens
        self._num_decode = num = int(longer[0]) if len(longer) else batch.num_rows
        if num == batch.num_rows or (self._few and 2 * num > batch.num_tokens):
            self._num_decode = batch.num_tokens
            self.decode.plan(batch)
        elif not num:
            self.prefill.plan(batch)
        else:
            self.decode.plan(_rows(batch, 0, num))
            self.prefill.plan(_rows(batch, num, batch.num_rows))

    def run(
        self, layer: int, query: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
    ) -> torch.Tensor:
        """See ``AttentionBackend.run``."""
        num = self._num_decode
        if num == self._num_tokens:
            return self.decode.run(layer, query, k_cache, v_cache)
        if not num:
            return self.prefill.run(layer, query, k_cache, v_cache)
        return torch.cat(
            (
                self.decode.run(layer, query[:num], k_cache, v_cache),
                self.prefill.run(layer, query[num:], k_cache, v_cache),
            )
        )


def _rows(batch: ForwardBatch, begin: int, end: int) -> ForwardBatch:
    """Return rows [begin, end) as a batch of their own; ``logits_rows`` is left as it is."""
    first, last = int(batch.query_start_host[begin]), int(batch.query_start_host[end])
    tokens, rows = slice(first, last), slice(begin, end)
    return dataclasses.replace(
        batch,
        input_ids=batch.input_ids[tokens],
        positions=batch.positions[tokens],
        kv_slots=batch.kv_slots[tokens],
        query_start=batch.query_start[begin : end + 1] - first,
        kv_lens=batch.kv_lens[rows],
        query_start_host=batch.query_start_host[begin : end + 1] - first,
        kv_lens_host=batch.kv_lens_host[rows],
        page_table_host=batch.page_table_host[rows],
    )
