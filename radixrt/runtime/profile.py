"""The largest steps that can happen, run once so that their memory is known."""

from __future__ import annotations

import numpy as np
import torch

from radixrt.config import RuntimeConfig
from radixrt.runtime.attention.base import AttentionBackend
from radixrt.runtime.builder import build_batch
from radixrt.runtime.kv import KvPool
from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.ops.base import Ops
from radixrt.runtime.plan import Plan
from radixrt.runtime.sampler import SamplingRows, logprobs_of, sample
from radixrt.runtime.scheduler import Limits
from radixrt.runtime.slots import SlotTable

_TOP_LOGPROBS = 20


@torch.inference_mode()
def run_worst_steps(
    model: CausalLM,
    attention: AttentionBackend,
    ops: Ops,
    config: RuntimeConfig,
    limits: Limits,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Run the largest chunk, with as many wanted logits as a step may have, and the largest decode
    batch with logprobs; the K and V they write go to a small pool of their own."""
    tokens, rows = limits.max_step_tokens, config.max_running
    chunk = min(tokens, config.context_length)
    _run(model, attention, config, [0], [chunk], limits.max_logits_rows, device, dtype)
    _run(model, attention, config, [0] * rows, [1] * rows, rows, device, dtype)


def _run(
    model: CausalLM,
    attention: AttentionBackend,
    config: RuntimeConfig,
    starts: list[int],
    ends: list[int],
    num_logits: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    page_size, num_rows = config.page_size, len(starts)
    slots = SlotTable(num_rows, max(ends), page_size)
    num_pages = -(-max(ends) // page_size)
    pages = np.arange(1, num_rows * num_pages + 1, dtype=np.int32).reshape(num_rows, num_pages)
    slots.pages[:, :num_pages] = pages
    shape = model.config
    pool = KvPool.zeros(
        shape.num_layers,
        num_rows * num_pages + 1,
        page_size,
        shape.num_kv_heads,
        shape.head_dim,
        dtype=dtype,
        device=device,
    )
    total = sum(ends) - sum(starts)
    plan = Plan(
        requests=[],
        slots=np.arange(num_rows, dtype=np.int32),
        starts=np.array(starts, np.int32),
        ends=np.array(ends, np.int32),
        logits_at=np.arange(total - min(num_logits, total), total, dtype=np.int64),
        sample_rows=np.zeros(0, np.int32),
        sample_logits=np.zeros(0, np.int64),
        scores=[],
        copies=[],
    )
    batch = build_batch(plan, slots, torch.zeros(num_rows, dtype=torch.int64), device)
    attention.plan(batch)
    logits = model.forward(batch, pool.k, pool.v, attention)
    n = len(logits)
    filtered = SamplingRows(
        temperature=np.ones(n, np.float32),
        top_p=np.full(n, 0.9, np.float32),
        top_k=np.full(n, 50, np.int32),
        min_p=np.zeros(n, np.float32),
        uniform=np.zeros(n, np.float32),
    )
    ids = sample(logits, filtered)
    logprobs_of(logits, ids, min(_TOP_LOGPROBS, logits.shape[1]))
