"""The interface of the element-wise and linear operations that a model is written with."""

from __future__ import annotations

from typing import Protocol

import torch

from radixrt.runtime.ops.sampler import SamplingRows, sample


class Ops(Protocol):
    """Operations of one device; chosen once at start-up.

    Arguments are not modified where nothing else is said.
    """

    name: str

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``x @ weight.T + bias``: x [T, K], weight [N, K] as in the checkpoint, result [T, N]."""
        ...

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, add_one: bool = False
    ) -> torch.Tensor:
        """RMSNorm over the last dimension, computed in f32; ``add_one`` scales by ``1 + weight``
        (Gemma). x is [T, H] or [T, heads, head_dim]."""
        ...

    def add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        *,
        add_one: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(rms_norm(x + residual), x + residual)``; may reuse the memory of both."""
        ...

    def linear_add_rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        *,
        add_one: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``add_rms_norm(linear(x, weight, bias), residual, norm, eps)``; may round once less."""
        ...

    def rope(
        self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor
    ) -> None:
        """Rotate query [T, Hq, D] and key [T, Hk, D] in place, half-split (NeoX) layout.

        ``cos_sin`` is f32 [max_positions, D]: cosines in the first half of the last dimension,
        sines in the second.
        """
        ...

    def gated_act(self, gate_up: torch.Tensor, act: str) -> torch.Tensor:
        """``act(gate) * up`` for gate_up [T, 2F] (gate first); act is "silu" or "gelu_tanh"."""
        ...

    def gated_linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, act: str
    ) -> torch.Tensor:
        """``gated_act(linear(x, weight, bias), act)``: weight [2F, K], gate first; [T, F]."""
        ...

    def rope_kv_write(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """``rope``, then ``kv_write``; what is left in ``key`` is undefined."""
        ...

    def kv_write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """Write key and value [T, Hk, D] to ``slots`` of the pools [pages, page_size, Hk, D]."""
        ...

    def copy_pages(
        self,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        sources: torch.Tensor,
        targets: torch.Tensor,
        lens: torch.Tensor,
    ) -> None:
        """Copy the first ``lens[i]`` tokens of page ``sources[i]`` to page ``targets[i]``, in any
        order: no target may be another target or a source. int32 [N]; the pools are [num_layers,
        num_pages, page_size, Hk, D] of the same strides, a page's tokens side by side."""
        ...

    def apply_token_mask(self, logits: torch.Tensor, bitmask: torch.Tensor) -> None:
        """Set logits [R, V] to -inf where ``bitmask`` int32 [R, ceil(V / 32)] has a 0 bit."""
        ...

    def sample(self, logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
        """Return the chosen token of each row, int64 [K], as ``sampler.sample`` defines it; logits
        [K, V] are not modified. Nothing is read back from the device."""
        ...


class ComposedOps(Ops):
    """What follows from other operations, for providers without a kernel of their own for it."""

    def gated_linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, act: str
    ) -> torch.Tensor:
        """See ``Ops.gated_linear``."""
        return self.gated_act(self.linear(x, weight, bias), act)

    def linear_add_rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        *,
        add_one: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Ops.linear_add_rms_norm``."""
        product = self.linear(x, weight, bias)
        return self.add_rms_norm(product, residual, norm, eps, add_one=add_one)

    def rope_kv_write(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """See ``Ops.rope_kv_write``."""
        self.rope(query, key, positions, cos_sin)
        self.kv_write(key, value, k_cache, v_cache, slots)

    def sample(self, logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
        """See ``Ops.sample``; in plain torch, which waits for a GPU."""
        return sample(logits, rows)
