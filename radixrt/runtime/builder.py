"""From a plan to the arrays of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from radixrt.runtime.batch import ForwardBatch, Int32
from radixrt.runtime.device import upload
from radixrt.runtime.plan import Plan
from radixrt.runtime.slots import PLACEHOLDER, SlotTable


class HostBatch(NamedTuple):
    """The arrays of a ``ForwardBatch`` on the host; ``unknown`` are the tokens that a step in
    flight is still sampling, in slots ``unknown_slots``."""

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    kv_slots: NDArray[np.int64]
    query_start: Int32
    kv_lens: Int32
    page_table: Int32
    logits_rows: NDArray[np.int64]
    unknown: NDArray[np.int64]
    unknown_slots: NDArray[np.int64]


def host_batch(plan: Plan, slots: SlotTable) -> HostBatch:
    """Return the arrays of a plan with at least one row."""
    rows, starts, ends = plan.slots, plan.starts, plan.ends
    lens = ends - starts
    query_start = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(lens, out=query_start[1:])
    num_tokens = int(query_start[-1])
    if num_tokens == len(rows):
        row_slots, positions = rows, starts
    else:
        row_slots = np.repeat(rows, lens)
        positions = np.arange(num_tokens, dtype=np.int32)
        positions += np.repeat(starts - query_start[:-1], lens)
    input_ids = slots.tokens[row_slots, positions].astype(np.int64)
    page_size = slots.page_size
    kv_slots = slots.pages[row_slots, positions // page_size].astype(np.int64) * page_size
    kv_slots += positions % page_size
    page_table = slots.pages[rows, : -(-int(ends.max()) // page_size)]
    unknown = np.flatnonzero(input_ids == PLACEHOLDER)
    return HostBatch(
        input_ids,
        positions.astype(np.int64),
        kv_slots,
        query_start,
        ends,
        page_table,
        plan.logits_at,
        unknown,
        row_slots[unknown].astype(np.int64),
    )


def device_batch(
    host: HostBatch, tensors: Sequence[torch.Tensor], last_ids: torch.Tensor
) -> ForwardBatch:
    """Return the batch whose arrays are on the device as ``tensors``, in the order of ``host``.

    ``last_ids`` int64 [S] holds, on the device, the token each slot sampled last; it stands in for
    tokens that the host does not know yet.
    """
    input_ids, positions, kv_slots, query_start, kv_lens, page_table, logits_rows = tensors[:7]
    if num_unknown := len(host.unknown):
        at, of_slots = (tensor[:num_unknown] for tensor in tensors[7:])
        input_ids[at] = last_ids[of_slots]
    return ForwardBatch(
        input_ids=input_ids,
        positions=positions,
        kv_slots=kv_slots,
        query_start=query_start,
        kv_lens=kv_lens,
        page_table=page_table,
        logits_rows=logits_rows,
        query_start_host=host.query_start,
        kv_lens_host=host.kv_lens,
        page_table_host=host.page_table,
    )


def build_batch(
    plan: Plan, slots: SlotTable, last_ids: torch.Tensor, device: torch.device
) -> ForwardBatch:
    """Return the batch of a plan with at least one row; ``last_ids`` as for ``device_batch``."""
    host = host_batch(plan, slots)
    return device_batch(host, upload(host, device), last_ids)
