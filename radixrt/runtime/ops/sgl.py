"""The operations of the sgl-kernel package, where they serve; the others are Triton's."""

from __future__ import annotations

import sgl_kernel
import torch

from radixrt.runtime.ops.triton import TritonOps


class SglOps(TritonOps):
    """The provider "sgl". Methods: see ``Ops``.

    Its kernels take half precision and rows of whole 16-byte words; anything else, and what the
    package lacks (gemma's scale by 1 + weight in place, products of few rows), is Triton's.
    """

    name = "sgl"

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, add_one: bool = False
    ) -> torch.Tensor:
        """See ``Ops.rms_norm``."""
        if x.dim() != 2 or not _serves(x) or not x.is_contiguous():
            return super().rms_norm(x, weight, eps, add_one=add_one)
        norm = sgl_kernel.gemma_rmsnorm if add_one else sgl_kernel.rmsnorm
        normed: torch.Tensor = norm(x, weight, eps)
        return normed

    def add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        *,
        add_one: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Ops.add_rms_norm``; both results lie in the memory of the arguments."""
        if not _serves(x) or not x.is_contiguous():
            return super().add_rms_norm(x, residual, weight, eps, add_one=add_one)
        norm = sgl_kernel.gemma_fused_add_rmsnorm if add_one else sgl_kernel.fused_add_rmsnorm
        norm(x, residual, weight, eps)
        return x, residual

    def gated_act(self, gate_up: torch.Tensor, act: str) -> torch.Tensor:
        """See ``Ops.gated_act``."""
        if not _serves(gate_up):
            return super().gated_act(gate_up, act)
        gated = sgl_kernel.silu_and_mul if act == "silu" else sgl_kernel.gelu_tanh_and_mul
        result: torch.Tensor = gated(gate_up)
        return result

    def apply_token_mask(self, logits: torch.Tensor, bitmask: torch.Tensor) -> None:
        """See ``Ops.apply_token_mask``."""
        sgl_kernel.apply_token_bitmask_inplace_cuda(logits, bitmask)


def _serves(x: torch.Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16) and x.shape[-1] % 16 == 0
