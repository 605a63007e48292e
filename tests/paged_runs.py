"""Running a model by hand, without an engine: batches over pages in any order, greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from radixrt.runtime.attention.base import AttentionBackend
from radixrt.runtime.attention.reference import ReferenceAttention
from radixrt.runtime.batch import ForwardBatch
from radixrt.runtime.model.decoder import CausalLM


def make_batch(
    query_lens: Sequence[int],
    kv_lens: Sequence[int],
    page_lists: Sequence[Sequence[int]],
    page_size: int,
    *,
    input_ids: Sequence[int] | None = None,
    logits_rows: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> ForwardBatch:
    """Return a batch whose row i has ``query_lens[i]`` new tokens of ``kv_lens[i]`` on the pages
    ``page_lists[i]``. Logits are wanted of each row's last token unless ``logits_rows`` says which.
    """
    query_start = np.concatenate(([0], np.cumsum(query_lens))).astype(np.int32)
    table = np.zeros((len(kv_lens), max(map(len, page_lists))), dtype=np.int32)
    positions, slots = [], []
    for row, pages in enumerate(page_lists):
        table[row, : len(pages)] = pages
        at = np.arange(kv_lens[row] - query_lens[row], kv_lens[row])
        positions.append(at)
        slots.append(table[row, at // page_size].astype(np.int64) * page_size + at % page_size)
    lens = np.asarray(kv_lens, dtype=np.int32)
    wanted = query_start[1:] - 1 if logits_rows is None else np.asarray(logits_rows)

    def put(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)

    ids = np.zeros(query_start[-1], np.int64) if input_ids is None else np.asarray(input_ids)
    return ForwardBatch(
        input_ids=put(ids, torch.int64),
        positions=put(np.concatenate(positions), torch.int64),
        kv_slots=put(np.concatenate(slots), torch.int64),
        query_start=put(query_start, torch.int32),
        kv_lens=put(lens, torch.int32),
        logits_rows=put(wanted, torch.int64),
        query_start_host=query_start,
        kv_lens_host=lens,
        page_table_host=table,
    )


class PagedRun:
    """A model with a pool of its own and a row per sequence, their pages shuffled by ``seed``."""

    def __init__(
        self,
        model: CausalLM,
        *,
        page_size: int = 16,
        num_rows: int = 1,
        max_len: int = 192,
        seed: int = 0,
        attention: AttentionBackend | None = None,
    ) -> None:
        config = model.config
        pages_per_row = -(-max_len // page_size)
        shape = (
            config.num_layers,
            1 + num_rows * pages_per_row,
            page_size,
            config.num_kv_heads,
            config.head_dim,
        )
        # NaN, so that a read of what was never written shows.
        self.k = torch.full(shape, float("nan"), dtype=model.dtype, device=model.device)
        self.v = self.k.clone()
        order = np.random.default_rng(seed).permutation(np.arange(1, shape[1]))
        self.pages = order.reshape(num_rows, pages_per_row).tolist()
        self.model = model
        self.page_size = page_size
        self.tokens: list[list[int]] = [[] for _ in range(num_rows)]
        self.attention = attention or ReferenceAttention(config.attention, page_size)

    @torch.inference_mode()
    def step(
        self, new_tokens: dict[int, Sequence[int]], *, all_logits: bool = False
    ) -> torch.Tensor:
        """Compute new tokens of some rows (row → ids) and return their logits: of each row's last
        token, in the order of the dict, or of all tokens."""
        for row, ids in new_tokens.items():
            self.tokens[row] += ids
        flat = [token for ids in new_tokens.values() for token in ids]
        batch = make_batch(
            [len(ids) for ids in new_tokens.values()],
            [len(self.tokens[row]) for row in new_tokens],
            [self.pages[row] for row in new_tokens],
            self.page_size,
            input_ids=flat,
            logits_rows=range(len(flat)) if all_logits else None,
            device=self.model.device,
        )
        self.attention.plan(batch)
        return self.model.forward(batch, self.k, self.v, self.attention)

    def greedy(self, prompt: Sequence[int], num_tokens: int, row: int = 0) -> list[int]:
        """Return the most likely continuation of the prompt, token by token."""
        logits = self.step({row: list(prompt)})
        out: list[int] = []
        while True:
            out.append(int(logits[0].argmax()))
            if len(out) == num_tokens:
                return out
            logits = self.step({row: out[-1:]})
