"""The native kernels of CPUs: what ``radixrt.runtime`` computes with where there is no GPU.

Tensors are torch's, on the CPU, f32 or bf16 unless said otherwise, and may be strided views whose
last dimension is dense; they are read through DLPack's C exchange table, at no copy. Sums are
accumulated in f32. A call on bad arguments raises ``InvalidArgument`` naming the argument and
changes nothing. Calls that take longer than about 50 µs release the interpreter lock; the others
keep it, for taking it back costs more. Everything may be called from several threads.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_Int32 = NDArray[np.int32]
_Tiles = tuple[_Int32, _Int32, _Int32, _Int32, _Int32, _Int32]

def plan_tiles(
    query_start: _Int32,
    kv_lens: _Int32,
    page_table: _Int32,
    page_size: int,
    small_slots: int,
    large_slots: int,
    small_shares: int,
    large_shares: int,
    window: int,
    group: bool,
    queue: bool,
    min_run_tokens: int,
    min_prompt_keys: int,
    even_percent: int,
    queued_quarters: int,
    tile_cost: int,
) -> tuple[_Tiles, _Tiles, _Int32, _Int32, int, _Int32]:
    """What ``radixrt.runtime.attention.tiles.reference_plan`` returns: small and large tiles,
    ``merge_token``, ``merge_start``, ``num_partials``, ``pages``; of dense int32 arrays."""

def cpu_features() -> list[str]:
    """Names of the kernel variants this processor runs, best first; the last one is "generic"."""

class AttentionPlan:
    """The rows of one step, checked. Made by ``Kernels.plan_attention``; keeps their tensors."""

class Kernels:
    """The kernels of one instruction set on a number of threads.

    ``tensor_type`` is ``torch.Tensor`` (2.11 or newer). ``variant`` is "best" or one of
    ``cpu_features()``. ``num_threads`` 0 takes all processors; objects of the same number share
    their threads.
    """

    def __init__(
        self, tensor_type: type[torch.Tensor], variant: str = "best", num_threads: int = 0
    ) -> None: ...
    @property
    def variant(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    def linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        f32_out: bool = False,
    ) -> torch.Tensor:
        """Return ``x @ weight.T + bias``: x [T, K], weight [N, K], result [T, N] of x's dtype or
        f32. For few rows of x: reads the weight once, at memory bandwidth."""

    def gemm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        f32_out: bool = False,
    ) -> torch.Tensor:
        """Return what ``linear`` returns; for many rows of x. Holds a packed copy of x, T · K
        words, while it runs."""

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, add_one: bool = False
    ) -> torch.Tensor:
        """Return RMSNorm of the last dimension of x [T, H] or [T, heads, H], in a new tensor."""

    def add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        add_one: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(rms_norm(x + residual), x + residual)`` for [T, H]; overwrites ``residual``
        with the sum and a dense ``x`` with the norm."""

    def rope(
        self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor
    ) -> None:
        """Rotate query [T, Hq, D] and key [T, Hk, D] in place by ``cos_sin`` f32 [max, D] at
        ``positions`` int64 [T], half-split layout."""

    def gated_act(self, gate_up: torch.Tensor, act: str) -> torch.Tensor:
        """Return ``act(gate) * up`` [T, F] of gate_up [T, 2F]; act is "silu" or "gelu_tanh"."""

    def kv_write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """Copy key and value [T, Hk, D] to ``slots`` int64 [T] of [num_pages, page_size, Hk, D]."""

    def copy_page(
        self,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        source: int,
        target: int,
        num_tokens: int,
    ) -> None:
        """Copy the first tokens of a page, in every layer of [L, num_pages, page_size, Hk, D]."""

    def move_pages(
        self,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        host: torch.Tensor,
        pages: torch.Tensor,
        host_pages: torch.Tensor,
        first_layer: int,
        last_layer: int,
        to_host: bool,
    ) -> None:
        """Copy layers [first, last) of ``pages`` (int32 [n]) of the pools [L, num_pages, page_size,
        Hk, D] to ``host_pages`` (int32 [n]) of host [N, L, 2, page_size, Hk, D], or back. Runs on
        the calling thread alone."""

    def apply_token_mask(self, logits: torch.Tensor, bitmask: torch.Tensor) -> None:
        """Set logits f32 [R, V] to -inf where the bit of int32 [R, ceil(V / 32)] is 0."""

    def plan_attention(
        self,
        query_start: torch.Tensor,
        kv_lens: torch.Tensor,
        page_table: torch.Tensor,
        page_size: int,
    ) -> AttentionPlan:
        """Return the checked rows of a step: int32 [B + 1], [B] and [B, M], see ``ForwardBatch``.

        The tensors must not change while the plan is used.
        """

    def attention(
        self,
        plan: AttentionPlan,
        query: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
    ) -> torch.Tensor:
        """Return causal attention [T, Hq, D] of query [T, Hq, D] over the plan's pages of
        [num_pages, page_size, Hk, D]; see ``AttentionSpec`` for window and softcap."""
