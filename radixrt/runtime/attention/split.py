"""Attention by two backends: one for the rows that decode, one for the rows that prefill."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from radixrt.runtime.attention.base import AttentionBackend
from radixrt.runtime.batch import ForwardBatch

LIBRARY_TOKENS = 128
"""Tokens of a tile of FlashInfer's prefill by FA3, all of one row; it has one query head."""

OUR_ROWS = 64
"""Tokens times query heads of a large tile of Triton's (``triton.LARGE``)."""

LIBRARY_TILE_COST = 0.875
"""What a tile of the library's takes, in tiles of ours: on an H200 128 tokens of 4 heads over 1,236
keys 5.6 µs, 16 tokens of 4 heads 1.6."""


class SplitAttention:
    """Leading rows with one new token go to ``decode``, all others to ``prefill``.

    The scheduler puts rows in that order. Both write their part of one output. With ``few``, a step
    of which prefilling is less than half goes to ``decode`` as a whole: few prefilling tokens do
    not pay for a launch of their own and a copy of the outputs, and a backend that groups rows
    reads a prefix once that they share with those that decode. With ``group``, the query heads of a
    key head, so does a step of chunks so short that they leave the prefill's tiles mostly empty.
    """

    def __init__(
        self,
        decode: AttentionBackend,
        prefill: AttentionBackend,
        *,
        few: bool = False,
        group: int = 0,
    ) -> None:
        self.name = f"{decode.name} decode, {prefill.name} prefill"
        self._few = few
        self._group = group
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
        few = self._few and 2 * num > batch.num_tokens
        if num == batch.num_rows or few or self._are_short(batch, num):
            self._num_decode = batch.num_tokens
            self.decode.plan(batch)
        elif not num:
            self.prefill.plan(batch)
        else:
            self.decode.plan(_rows(batch, 0, num))
            self.prefill.plan(_rows(batch, num, batch.num_rows))

    def _are_short(self, batch: ForwardBatch, num_decode: int) -> bool:
        if not self._group:
            return False
        lens = np.diff(batch.query_start_host)[num_decode:].astype(np.int64)
        keys = batch.kv_lens_host[num_decode:]
        ours = -(-lens * self._group // OUR_ROWS) @ keys
        library = self._group * (-(-lens // LIBRARY_TOKENS) @ keys)
        return bool(ours < LIBRARY_TILE_COST * library)

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
