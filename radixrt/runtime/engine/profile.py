"""The largest steps that can happen, run so that their memory is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from radixrt.config import RuntimeConfig
from radixrt.runtime.attention.base import AttentionBackend
from radixrt.runtime.forward.builder import build_batch
from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.ops.base import Ops
from radixrt.runtime.ops.sampler import SamplingRows, logprobs_of
from radixrt.runtime.scheduling.kv import KvPool
from radixrt.runtime.scheduling.plan import Plan
from radixrt.runtime.scheduling.scheduler import Limits
from radixrt.runtime.scheduling.slots import SlotTable

_TOP_LOGPROBS = 20


class WorstSteps:
    """The largest chunk, with as many wanted logits as a step may have; on a GPU as many tokens in
    the shortest chunks, for which attention may have another kernel; and the largest decode batch
    with logprobs. The K and V they write go to small pools of their own."""

    def __init__(
        self,
        model: CausalLM,
        attention: AttentionBackend,
        ops: Ops,
        config: RuntimeConfig,
        limits: Limits,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.model = model
        self.attention = attention
        self.ops = ops
        self.config = config
        self.limits = limits
        self.device = device
        self.dtype = dtype

    @property
    def least_bytes(self) -> int:
        """Bytes that the wanted logits alone take, f32 and once copied."""
        return 2 * self.limits.max_logits_rows * self.model.config.vocab_size * 4

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run one token, so that mapped weights are resident before anything is measured."""
        self._run([1], 1)

    @torch.inference_mode()
    def run(self) -> None:
        """Run them."""
        chunk = min(self.limits.max_step_tokens, self.config.context_length)
        rows = self.config.max_running
        self._run([chunk], self.limits.max_logits_rows)
        if self.device.type == "cuda" and chunk > 1:
            self._run([2] * min(rows, chunk // 2), self.limits.max_logits_rows)
        self._run([1] * rows, rows)

    def _run(self, lens: list[int], num_logits: int) -> None:
        device, page_size, num_rows = self.device, self.config.page_size, len(lens)
        slots = SlotTable(num_rows, max(lens), page_size)
        per_row = -(-max(lens) // page_size)
        pages = np.arange(1, num_rows * per_row + 1, dtype=np.int32)
        slots.pages[:, :per_row] = pages.reshape(num_rows, per_row)
        shape = self.model.config
        pool = KvPool.zeros(
            shape.num_layers,
            num_rows * per_row + 1,
            page_size,
            shape.num_kv_heads,
            shape.head_dim,
            dtype=self.dtype,
            device=device,
        )
        total = sum(lens)
        plan = Plan(
            requests=[],
            slots=np.arange(num_rows, dtype=np.int32),
            starts=np.zeros(num_rows, np.int32),
            ends=np.array(lens, np.int32),
            logits_at=np.arange(total - min(num_logits, total), total, dtype=np.int64),
            sample_rows=np.zeros(0, np.int32),
            sample_logits=np.zeros(0, np.int64),
            scores=[],
            copies=[],
        )
        last_ids = torch.zeros(num_rows, dtype=torch.int64, device=device)
        batch = build_batch(plan, slots, last_ids, device)
        # Its kernel is compiled here as well.
        page = torch.ones(1, dtype=torch.int32, device=device)
        self.ops.copy_pages(pool.k, pool.v, page - 1, page, page)
        self.attention.plan(batch)
        logits = self.model.forward(batch, pool.k, pool.v, self.attention)
        n = len(logits)
        ones = torch.ones(n, device=device)
        filtered = SamplingRows(
            temperature=ones,
            top_p=ones * 0.9,
            top_k=torch.full((n,), min(50, logits.shape[1]), dtype=torch.int32, device=device),
            min_p=ones * 0,
            uniform=ones * 0,
        )
        greedy = dataclasses.replace(filtered, is_random=False)
        # Penalties edit a copy in f32. Every kernel that sampling may need is compiled here.
        edited = logits.float()
        masks = torch.full((n, -(-logits.shape[1] // 32)), -1, dtype=torch.int32, device=device)
        for values in (logits, edited):
            self.ops.apply_token_mask(values, masks)
            self.ops.sample(values, greedy)
            ids = self.ops.sample(values, filtered)
        logprobs_of(logits, ids, min(_TOP_LOGPROBS, logits.shape[1]))
