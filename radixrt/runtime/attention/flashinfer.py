"""Attention through FlashInfer: FA2 tensor-core decode and, on Hopper, FA3 prefill.

Which kernel serves what was measured on one H200: decode by the FA2 kernel runs at 3.9–4.1 TB/s
where FA3's reaches 0.85, and paged prefill by FA3 at 535 TFLOP/s where FA2's reaches 330.
"""

from __future__ import annotations

from collections.abc import Sequence

import flashinfer
import numpy as np
import torch
from numpy.typing import NDArray

from radixrt.errors import ConfigError
from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.batch import ForwardBatch

WORKSPACE_BYTES = 256 << 20
"""FlashInfer's scratch memory for split-KV results; shared by all wrappers of a backend."""


class FlashInferAttention:
    """The backend "flashinfer".

    Leading rows with one new token are decoded, the others prefilled; the scheduler puts them in
    that order. Layers that differ in window or soft cap get a wrapper (and a plan) each.
    """

    name = "flashinfer"

    def __init__(
        self,
        specs: Sequence[AttentionSpec],
        page_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if dtype not in (torch.bfloat16, torch.float16):
            raise ConfigError(
                f"attention=flashinfer: {dtype} is not served; use triton or bfloat16"
            )
        hopper = torch.cuda.get_device_capability(device)[0] == 9
        workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._specs = tuple(specs)
        self._page_size = page_size
        self._dtype = dtype
        self._num_decode_rows = 0
        self._num_prefill_rows = 0
        self._decode = {
            spec: flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                workspace, "NHD", use_tensor_cores=True, backend="fa2"
            )
            for spec in set(specs)
        }
        self._prefill = {
            spec: flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                workspace, "NHD", backend="fa3" if hopper else "fa2"
            )
            for spec in set(specs)
        }

    def plan(self, batch: ForwardBatch) -> None:
        """Plan the decode rows and the prefill rows, once per distinct layer spec."""
        query_lens = np.diff(batch.query_start_host)
        longer = np.flatnonzero(query_lens > 1)
        num_decode = int(longer[0]) if len(longer) else batch.num_rows
        self._num_decode_rows = num_decode
        self._num_prefill_rows = batch.num_rows - num_decode
        if num_decode:
            indptr, indices, last = self._pages(batch, 0, num_decode)
            for spec, wrapper in self._decode.items():
                wrapper.plan(
                    indptr,
                    indices,
                    last,
                    spec.num_heads,
                    spec.num_kv_heads,
                    spec.head_dim,
                    self._page_size,
                    window_left=spec.window - 1,
                    logits_soft_cap=spec.softcap,
                    sm_scale=spec.scale,
                    q_data_type=self._dtype,
                    kv_data_type=self._dtype,
                )
        if self._num_prefill_rows:
            indptr, indices, last = self._pages(batch, num_decode, batch.num_rows)
            query_start = batch.query_start_host[num_decode:] - num_decode
            for spec, wrapper in self._prefill.items():
                wrapper.plan(
                    torch.from_numpy(query_start),
                    indptr,
                    indices,
                    last,
                    spec.num_heads,
                    spec.num_kv_heads,
                    spec.head_dim,
                    self._page_size,
                    causal=True,
                    window_left=spec.window - 1,
                    logits_soft_cap=spec.softcap,
                    sm_scale=spec.scale,
                    q_data_type=self._dtype,
                    kv_data_type=self._dtype,
                )

    def run(
        self, layer: int, query: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
    ) -> torch.Tensor:
        """See ``AttentionBackend.run``."""
        spec = self._specs[layer]
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        split = self._num_decode_rows
        if split:
            self._decode[spec].run(query[:split], (k_cache, v_cache), out=out[:split])
        if self._num_prefill_rows:
            self._prefill[spec].run(query[split:], (k_cache, v_cache), out=out[split:])
        return out

    def _pages(
        self, batch: ForwardBatch, begin: int, end: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return FlashInfer's (indptr, indices, last_page_len) of some rows, on the host."""
        lens = batch.kv_lens_host[begin:end]
        counts = -(-lens // self._page_size)
        indptr = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        table = batch.page_table_host[begin:end]
        indices: NDArray[np.int32] = table[np.arange(table.shape[1]) < counts[:, None]]
        last = (lens - (counts - 1) * self._page_size).astype(np.int32)
        return (
            torch.from_numpy(indptr),
            torch.from_numpy(indices.astype(np.int32, copy=False)),
            torch.from_numpy(last),
        )
