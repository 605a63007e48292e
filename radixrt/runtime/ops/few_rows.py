"""Products with few rows: what the kernels for them have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

GATES = {"": 0, "silu": 1, "gelu_tanh": 2}
"""The activation of a gate as a constant of a kernel."""


class FewRows(ABC):
    """Products of up to ``max_rows`` rows on one device; more go to the vendor's library, which is
    as fast from there on."""

    max_rows: ClassVar[int]

    def serves(self, x: torch.Tensor, weight: torch.Tensor, *, gated: bool = False) -> bool:
        """Whether this product is one of ours: few rows, whole tiles, half precision."""
        width = weight.shape[0] // 2 if gated else weight.shape[0]
        return (
            0 < x.shape[0] <= self.max_rows
            and x.dtype in (torch.bfloat16, torch.float16)
            and x.stride(1) == 1
            and x.stride(0) % 8 == 0  # bulk copies ask for rows that begin at 16 bytes
            and width % 128 == 0
            and weight.shape[1] % 128 == 0
            and weight.is_contiguous()
        )

    @abstractmethod
    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, act: str = ""
    ) -> torch.Tensor:
        """Return ``x @ weight.T + bias`` [T, N]; with ``act``, whose weights are [2F, K], gate
        first, ``act(gate) * up`` [T, F]."""
