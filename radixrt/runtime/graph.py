"""Decode steps as recorded graphs: the host replays a whole forward with one call.

A decode step of a large model is hundreds of small launches; issued one by one they take longer
than the device needs for them. A recorded graph reads and writes the same memory each time, so the
batch and the attention's plan are copied into place before it is replayed. There is a graph for
some batch sizes; a batch runs in the next larger one, and its rows beyond the batch write to the
page that belongs to nobody.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from radixrt.runtime.attention.base import AttentionBackend
from radixrt.runtime.batch import ForwardBatch
from radixrt.runtime.builder import HostBatch, device_batch
from radixrt.runtime.device import CapturedGraph, Upload

Forward = Callable[[ForwardBatch, AttentionBackend], torch.Tensor]
MakeAttention = Callable[[int], AttentionBackend]


def graph_sizes(max_rows: int) -> list[int]:
    """Return the batch sizes that get a graph, ascending: close together where rows cost most."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_rows + 32, 32)]
    return [size for size in sizes if size < max_rows] + [max_rows]


class DecodeGraphs:
    """Graphs for up to ``max_rows`` decoding rows.

    ``forward`` runs the model over the KV pool; ``make_attention(rows)`` returns a backend whose
    ``run`` can be recorded and whose ``plan`` raises ``unfit`` when a batch does not fit.
    """

    def __init__(
        self,
        forward: Forward,
        make_attention: MakeAttention,
        unfit: type[Exception],
        max_rows: int,
        max_pages: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._forward = forward
        self._unfit = unfit
        self._sizes = np.array(graph_sizes(max_rows))
        self._max_pages = max_pages
        self._upload = Upload(_blank(max_rows, max_pages), device)
        self._logits = torch.empty((max_rows, vocab_size), dtype=torch.float32, device=device)
        self._last_ids = torch.zeros(1, dtype=torch.int64, device=device)
        self._attention: dict[int, AttentionBackend] = {}
        self._graphs: dict[int, CapturedGraph] = {}
        for size in reversed(self._sizes.tolist()):
            self._record(size, make_attention(size))

    def _record(self, size: int, attention: AttentionBackend) -> None:
        batch = device_batch(_blank(size, self._max_pages), self._tensors(size), self._last_ids)
        attention.plan(batch)
        logits = self._logits[:size]

        def launch() -> torch.Tensor:
            return logits.copy_(self._forward(batch, attention))

        others = next(iter(self._graphs.values()), None)
        self._graphs[size] = CapturedGraph(launch, others.pool if others else None)
        self._attention[size] = attention

    def run(self, host: HostBatch, last_ids: torch.Tensor) -> torch.Tensor | None:
        """Return the logits f32 [rows, vocab_size] of a batch, valid until the next call; None for
        a batch that does not decode throughout, or whose sharing is too fine for the graph."""
        rows = len(host.kv_lens)
        decodes = len(host.input_ids) == rows == len(host.logits_rows)
        if not decodes or rows > self._sizes[-1]:
            return None
        size = int(self._sizes[np.searchsorted(self._sizes, rows)])
        padded = _pad(host, size, self._max_pages)
        self._upload.refill(padded)
        try:
            self._attention[size].plan(device_batch(host, self._tensors(size), last_ids))
        except self._unfit:
            return None
        return self._graphs[size].replay()[:rows]

    def _tensors(self, size: int) -> list[torch.Tensor]:
        ids, positions, kv_slots, query_start, *others = self._upload.tensors
        kv_lens, page_table, logits_rows, unknown, unknown_slots = others
        return [
            *(tensor[:size] for tensor in (ids, positions, kv_slots)),
            query_start[: size + 1],
            *(tensor[:size] for tensor in (kv_lens, page_table, logits_rows)),
            unknown,
            unknown_slots,
        ]


def _blank(rows: int, max_pages: int) -> HostBatch:
    """Return a batch of rows with one token each, all of them in the page of nobody."""
    zeros = np.zeros(rows, np.int64)
    return HostBatch(
        input_ids=zeros,
        positions=zeros,
        kv_slots=zeros,
        query_start=np.arange(rows + 1, dtype=np.int32),
        kv_lens=np.ones(rows, np.int32),
        page_table=np.zeros((rows, max_pages), np.int32),
        logits_rows=np.arange(rows, dtype=np.int64),
        unknown=np.zeros(rows, np.int64),
        unknown_slots=np.zeros(rows, np.int64),
    )


def _pad(host: HostBatch, size: int, max_pages: int) -> HostBatch:
    """Return the batch with rows of nobody behind it, ``size`` rows in all."""
    rows = len(host.kv_lens)
    padded = _blank(size, max_pages)
    page_table = padded.page_table
    page_table[:rows, : host.page_table.shape[1]] = host.page_table
    missing = size - rows
    return padded._replace(
        input_ids=np.pad(host.input_ids, (0, missing)),
        positions=np.pad(host.positions, (0, missing)),
        kv_slots=np.pad(host.kv_slots, (0, missing)),
        kv_lens=np.pad(host.kv_lens, (0, missing), constant_values=1),
        unknown=host.unknown,
        unknown_slots=host.unknown_slots,
    )
