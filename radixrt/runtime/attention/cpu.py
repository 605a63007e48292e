"""Native paged attention on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from radixrt._native import AttentionPlan, Kernels
from radixrt.errors import ConfigError
from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.batch import ForwardBatch


class CpuAttention:
    """The backend "cpu": f32 and bf16, any page size, window and softcap. See ``AttentionBackend``.

    ``variant`` and ``num_threads`` are those of ``CpuOps``; both share one set of threads.
    """

    name = "cpu"

    def __init__(
        self,
        specs: Sequence[AttentionSpec],
        page_size: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        variant: str = "best",
        num_threads: int = 0,
    ) -> None:
        if device.type != "cpu":
            raise ConfigError(f"attention=cpu does not serve device {device}; use attention=auto")
        if dtype not in (torch.float32, torch.bfloat16):
            raise ConfigError(f"attention=cpu does not serve {dtype}; use float32 or bfloat16")
        for layer, spec in enumerate(specs):
            if spec.num_heads % spec.num_kv_heads:
                raise ConfigError(
                    f"layer {layer}: num_heads={spec.num_heads} is not a multiple of "
                    f"num_kv_heads={spec.num_kv_heads}"
                )
        self._specs = tuple(specs)
        self._page_size = page_size
        self._kernels = Kernels(torch.Tensor, variant, num_threads or torch.get_num_threads())
        self._plan: AttentionPlan | None = None

    def plan(self, batch: ForwardBatch) -> None:
        """See ``AttentionBackend.plan``. Checks that the batch's tables fit together."""
        self._plan = self._kernels.plan_attention(
            batch.query_start,
            batch.kv_lens,
            torch.from_numpy(np.ascontiguousarray(batch.page_table_host)),
            self._page_size,
        )

    def run(
        self, layer: int, query: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
    ) -> torch.Tensor:
        """See ``AttentionBackend.run``."""
        assert self._plan is not None, "plan() comes first"
        spec = self._specs[layer]
        return self._kernels.attention(
            self._plan, query, k_cache, v_cache, spec.scale, spec.window, spec.softcap
        )
