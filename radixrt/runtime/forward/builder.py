"""From a plan to the arrays of a step: those of its forward pass and those of its sampling.

Everything a step needs to know is known when it is planned, and goes to the device in one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from radixrt.runtime.batch import ForwardBatch, Int32
from radixrt.runtime.device import upload
from radixrt.runtime.ops.sampler import SamplingRows, uniforms
from radixrt.runtime.scheduling.plan import Plan
from radixrt.runtime.scheduling.slots import PLACEHOLDER, SlotTable

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


class StepArrays(NamedTuple):
    """What goes to the device: T tokens of B rows, R wanted logits, K rows that sample.

    * ``input_ids`` [T], negative where a step in flight still samples the token; it is then what
      slot ``token_slots`` [T] sampled last
    * ``positions``, ``kv_slots`` [T], ``query_start`` [B+1], ``kv_lens`` [B], ``logits_rows`` [R]
      as in ``ForwardBatch``
    * ``sample_slots`` [K]: who samples; ``sample_logits`` [K]: with which of the wanted logits;
      the others [K] as in ``SamplingRows``
    """

    input_ids: Int64
    token_slots: Int64
    positions: Int64
    kv_slots: Int64
    query_start: Int32
    kv_lens: Int32
    logits_rows: Int64
    sample_slots: Int64
    sample_logits: Int64
    temperature: Float32
    top_p: Float32
    top_k: Int32
    min_p: Float32
    uniform: Float32


class SamplingArrays(NamedTuple):
    """The parameters of ``SamplingRows`` on the host, [K]."""

    temperature: Float32
    top_p: Float32
    top_k: Int32
    min_p: Float32
    uniform: Float32

    @classmethod
    def of(cls, slots: SlotTable, chosen: Int32, positions: Int32) -> SamplingArrays:
        """Return what the slots ``chosen`` ask for now, for tokens at ``positions``."""
        return cls(
            slots.temperature[chosen],
            slots.top_p[chosen],
            slots.top_k[chosen],
            slots.min_p[chosen],
            uniforms(slots.seed[chosen], positions),
        )

    @property
    def is_random(self) -> bool:
        """Whether any row has a temperature."""
        return bool((self.temperature > 0).any())

    @property
    def has_filter(self) -> bool:
        """Whether any row with a temperature has a top-k, top-p or min-p."""
        filters = (self.top_k > 0) | (self.top_p < 1) | (self.min_p > 0)
        return bool(((self.temperature > 0) & filters).any())

    def upload(self, device: torch.device) -> SamplingRows:
        """Return them on the device."""
        temperature, top_p, top_k, min_p, uniform = upload(self, device)
        return SamplingRows(
            temperature, top_p, top_k, min_p, uniform, self.is_random, self.has_filter
        )


@dataclass(frozen=True, slots=True)
class HostStep:
    """A step on the host: its arrays, the rows' pages int32 [B, M], and how it samples."""

    arrays: StepArrays
    page_table: Int32
    is_random: bool
    has_filter: bool

    @property
    def mostly_decodes(self) -> bool:
        """Whether more than half of the tokens are their row's only one."""
        starts = self.arrays.query_start
        return 2 * int((starts[1:] - starts[:-1] == 1).sum()) > len(self.arrays.input_ids)


class DeviceSampling(NamedTuple):
    """How a step samples, on the device. ``logits`` is None when all wanted logits do, in order."""

    rows: SamplingRows
    slots: torch.Tensor
    logits: torch.Tensor | None


def host_step(plan: Plan, slots: SlotTable) -> HostStep:
    """Return the arrays of a plan with at least one row."""
    rows, starts, ends = plan.slots, plan.starts, plan.ends
    lens = ends - starts
    query_start = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(lens, out=query_start[1:])
    num_tokens = int(query_start[-1])
    if num_tokens == len(rows):
        token_slots, positions = rows, starts
    else:
        token_slots = np.repeat(rows, lens)
        positions = np.arange(num_tokens, dtype=np.int32)
        positions += np.repeat(starts - query_start[:-1], lens)
    input_ids = slots.tokens[token_slots, positions].astype(np.int64)
    page_size = slots.page_size
    kv_slots = slots.pages[token_slots, positions // page_size].astype(np.int64) * page_size
    kv_slots += positions % page_size
    chosen = plan.slots[plan.sample_rows]
    parameters = SamplingArrays.of(slots, chosen, plan.ends[plan.sample_rows])
    return HostStep(
        StepArrays(
            input_ids=input_ids,
            token_slots=token_slots.astype(np.int64),
            positions=positions.astype(np.int64),
            kv_slots=kv_slots,
            query_start=query_start,
            kv_lens=ends,
            logits_rows=plan.logits_at,
            sample_slots=chosen.astype(np.int64),
            sample_logits=plan.sample_logits,
            **parameters._asdict(),
        ),
        page_table=slots.pages[rows, : -(-int(ends.max()) // page_size)],
        is_random=parameters.is_random,
        has_filter=parameters.has_filter,
    )


def device_batch(
    host: HostStep, tensors: Sequence[torch.Tensor], last_ids: torch.Tensor
) -> ForwardBatch:
    """Return the batch whose arrays are on the device as ``tensors``, in the order of
    ``StepArrays``; ``last_ids`` int64 [S] holds there the token each slot sampled last."""
    input_ids, token_slots, positions, kv_slots, query_start, kv_lens, logits_rows = tensors[:7]
    if bool((host.arrays.input_ids == PLACEHOLDER).any()):
        input_ids = torch.where(input_ids < 0, last_ids[token_slots], input_ids)
    return ForwardBatch(
        input_ids=input_ids,
        positions=positions,
        kv_slots=kv_slots,
        query_start=query_start,
        kv_lens=kv_lens,
        logits_rows=logits_rows,
        query_start_host=host.arrays.query_start,
        kv_lens_host=host.arrays.kv_lens,
        page_table_host=host.page_table,
    )


def device_sampling(host: HostStep, tensors: Sequence[torch.Tensor]) -> DeviceSampling:
    """Return how the step samples; ``tensors`` as for ``device_batch``, possibly of more rows."""
    num = len(host.arrays.sample_slots)
    slots, logits, temperature, top_p, top_k, min_p, uniform = (
        tensor[:num] for tensor in tensors[7:14]
    )
    rows = SamplingRows(temperature, top_p, top_k, min_p, uniform, host.is_random, host.has_filter)
    return DeviceSampling(rows, slots, None if num == len(host.arrays.logits_rows) else logits)


def build_batch(
    plan: Plan, slots: SlotTable, last_ids: torch.Tensor, device: torch.device
) -> ForwardBatch:
    """Return the batch of a plan with at least one row; ``last_ids`` as for ``device_batch``."""
    host = host_step(plan, slots)
    return device_batch(host, upload(host.arrays, device), last_ids)
