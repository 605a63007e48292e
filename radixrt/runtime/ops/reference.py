"""The operations in plain torch: the oracle of every other provider, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from radixrt.runtime.ops.base import ComposedOps


class ReferenceOps(ComposedOps):
    """The provider "reference": obvious rather than fast. Methods: see ``Ops``."""

    name = "reference"

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See ``Ops.linear``."""
        return F.linear(x, weight, bias)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, add_one: bool = False
    ) -> torch.Tensor:
        """See ``Ops.rms_norm`` (Zhang and Sennrich, 2019)."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        scale = weight.float()
        return (wide * (scale + 1.0 if add_one else scale)).to(x.dtype)

    def add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        *,
        add_one: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Ops.add_rms_norm``."""
        total = x + residual
        return self.rms_norm(total, weight, eps, add_one=add_one), total

    def rope(
        self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor
    ) -> None:
        """See ``Ops.rope`` (Su et al., RoFormer, 2021); rotates in f32."""
        cos, sin = cos_sin[positions][:, None, :].chunk(2, dim=-1)
        for heads in (query, key):
            first, second = heads.float().chunk(2, dim=-1)
            rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
            heads.copy_(rotated)

    def gated_act(self, gate_up: torch.Tensor, act: str) -> torch.Tensor:
        """See ``Ops.gated_act``."""
        gate, up = gate_up.chunk(2, dim=-1)
        if act == "silu":
            return F.silu(gate) * up
        assert act == "gelu_tanh", act
        return F.gelu(gate, approximate="tanh") * up

    def kv_write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """See ``Ops.kv_write``."""
        page_size = k_cache.shape[1]
        pages, offsets = slots // page_size, slots % page_size
        k_cache[pages, offsets] = key
        v_cache[pages, offsets] = value

    def copy_pages(
        self,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        sources: torch.Tensor,
        targets: torch.Tensor,
        lens: torch.Tensor,
    ) -> None:
        """See ``Ops.copy_pages``."""
        tokens = torch.arange(k_cache.shape[2], device=lens.device)
        is_copied = (tokens < lens[:, None])[:, :, None, None]
        for layer in (*k_cache, *v_cache):
            layer[targets] = torch.where(is_copied, layer[sources], layer[targets])

    def apply_token_mask(self, logits: torch.Tensor, bitmask: torch.Tensor) -> None:
        """See ``Ops.apply_token_mask``."""
        shifts = torch.arange(32, dtype=torch.int32, device=bitmask.device)
        bits = (bitmask[:, :, None] >> shifts) & 1
        allowed = bits.flatten(1)[:, : logits.shape[1]]
        logits.masked_fill_(allowed == 0, float("-inf"))
