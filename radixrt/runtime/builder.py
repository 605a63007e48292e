"""From a plan to the arrays of a forward pass."""

from __future__ import annotations

import numpy as np
import torch

from radixrt.runtime.batch import ForwardBatch
from radixrt.runtime.plan import Plan
from radixrt.runtime.slots import PLACEHOLDER, SlotTable


def build_batch(
    plan: Plan, slots: SlotTable, last_ids: torch.Tensor, device: torch.device
) -> ForwardBatch:
    """Return the batch of a plan with at least one row.

    ``last_ids`` int64 [S] holds, on the device, the token each slot sampled last; it stands in for
    tokens that the host does not know yet.
    """
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

    ids = torch.from_numpy(input_ids).to(device)
    unknown = np.flatnonzero(input_ids == PLACEHOLDER)
    if len(unknown):
        at = torch.from_numpy(unknown).to(device)
        ids[at] = last_ids[torch.from_numpy(row_slots[unknown].astype(np.int64)).to(device)]
    return ForwardBatch(
        input_ids=ids,
        positions=torch.from_numpy(positions.astype(np.int64)).to(device),
        kv_slots=torch.from_numpy(kv_slots).to(device),
        query_start=torch.from_numpy(query_start).to(device),
        kv_lens=torch.from_numpy(ends).to(device),
        page_table=torch.from_numpy(page_table).to(device),
        logits_rows=torch.from_numpy(plan.logits_at).to(device),
        query_start_host=query_start,
        kv_lens_host=ends,
        page_table_host=page_table,
    )
