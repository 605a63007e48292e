"""What one forward pass computes, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The rows of one step, ragged: row i has ``query_lens[i]`` new tokens after ``kv_lens[i] -
    query_lens[i]`` tokens whose K and V are already in the pool.

    Device tensors (T tokens, B rows, R wanted logits):

    * ``input_ids`` int64 [T], ``positions`` int64 [T]
    * ``kv_slots`` int64 [T]: where the token's K and V go (``page * page_size + offset``)
    * ``query_start`` int32 [B+1]: offsets of the rows in T
    * ``kv_lens`` int32 [B]: tokens of the row after this step, the new ones included
    * ``logits_rows`` int64 [R]: the tokens (indices into T) whose logits are wanted

    ``*_host`` are the same values as numpy arrays, for planning without a device read-back, and
    ``page_table_host`` int32 [B, M] the pages of row i in order; entries past its length are 0, a
    page that belongs to nobody. A backend sends to the device what it needs of them.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    kv_slots: torch.Tensor
    query_start: torch.Tensor
    kv_lens: torch.Tensor
    logits_rows: torch.Tensor
    query_start_host: Int32
    kv_lens_host: Int32
    page_table_host: Int32

    @property
    def num_tokens(self) -> int:
        """New tokens of all rows."""
        return int(self.query_start_host[-1])

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return len(self.kv_lens_host)
