"""The operations on CPUs: native kernels, with torch where torch was measured to be faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from radixrt._native import Kernels

FEW_ROWS = 32
"""Up to so many rows of x a product reads the weights at memory bandwidth (csrc/linear.cpp); more
are bound by arithmetic and go to a blocked product."""

ONEDNN_ROWS = 64
"""From so many rows on torch's oneDNN is fastest at bf16, on processors that multiply bf16."""


class CpuOps:
    """The provider "cpu", for f32 and bf16. Methods: see ``Ops``.

    ``variant`` is the instruction set of the kernels, "best" or one of
    ``radixrt._native.cpu_features()``; ``num_threads`` 0 takes torch's number. Arguments that do
    not fit raise ``InvalidArgument`` with the argument's name.
    """

    name = "cpu"

    def __init__(self, variant: str = "best", num_threads: int = 0) -> None:
        self._kernels = Kernels(torch.Tensor, variant, num_threads or torch.get_num_threads())
        self._multiplies_bf16 = self._kernels.variant == "avx512bf16"

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See ``Ops.linear``."""
        rows = x.shape[0]
        if rows <= FEW_ROWS:
            return self._kernels.linear(x, weight, bias)
        if self._multiplies_bf16 and rows >= ONEDNN_ROWS and x.dtype is torch.bfloat16:
            return F.linear(x, weight, bias)
        return self._kernels.gemm(x, weight, bias)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, add_one: bool = False
    ) -> torch.Tensor:
        """See ``Ops.rms_norm``."""
        return self._kernels.rms_norm(x, weight, eps, add_one)

    def add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        *,
        add_one: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Ops.add_rms_norm``. Both results lie in the memory of the arguments."""
        return self._kernels.add_rms_norm(x, residual, weight, eps, add_one)

    def rope(
        self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor
    ) -> None:
        """See ``Ops.rope``."""
        self._kernels.rope(query, key, positions, cos_sin)

    def gated_act(self, gate_up: torch.Tensor, act: str) -> torch.Tensor:
        """See ``Ops.gated_act``."""
        return self._kernels.gated_act(gate_up, act)

    def kv_write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """See ``Ops.kv_write``."""
        self._kernels.kv_write(key, value, k_cache, v_cache, slots)

    def copy_page(
        self,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        source: int,
        target: int,
        num_tokens: int,
    ) -> None:
        """See ``Ops.copy_page``."""
        self._kernels.copy_page(k_cache, v_cache, source, target, num_tokens)

    def apply_token_mask(self, logits: torch.Tensor, bitmask: torch.Tensor) -> None:
        """See ``Ops.apply_token_mask``."""
        self._kernels.apply_token_mask(logits, bitmask)
