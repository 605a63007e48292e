"""The operations on CPUs: native kernels, and torch's product where it is the faster one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812

from radixrt._native import Kernels, cpu_features
from radixrt.runtime.ops.base import ComposedOps

FEW_ROWS = 32
"""Up to so many rows of x a product reads the weights at memory bandwidth (csrc/linear.cpp); more
are bound by arithmetic and go to a blocked product (csrc/gemm.cpp)."""

PROBED_ROWS = (8, 16, 32, 64, 256)
"""Numbers of rows at which torch's bf16 product is timed against ours."""

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class CpuOps(ComposedOps):
    """The provider "cpu", for f32 and bf16. Methods: see ``Ops``.

    ``variant`` is the instruction set of the kernels, "best" or one of
    ``radixrt._native.cpu_features()``; ``num_threads`` 0 takes torch's number. Arguments that do
    not fit raise ``InvalidArgument`` with the argument's name.

    Where the processor multiplies bf16, torch's oneDNN may be faster at many rows, by far if there
    is AMX: construction then times both for some 50 ms. Elsewhere torch's bf16 product is an order
    of magnitude slower than ours, and its f32 product is not faster, so both stay unused.
    """

    name = "cpu"

    def __init__(self, variant: str = "best", num_threads: int = 0) -> None:
        self._kernels = Kernels(torch.Tensor, variant, num_threads or torch.get_num_threads())
        self._torch_rows = sys.maxsize
        if "avx512bf16" in cpu_features():
            self._torch_rows = _rows_where_torch_wins(self._product)

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See ``Ops.linear``."""
        if x.shape[0] >= self._torch_rows and x.dtype is torch.bfloat16:
            return F.linear(x, weight, bias)
        return self._product(x, weight, bias)

    def _product(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if x.shape[0] <= FEW_ROWS:
            return self._kernels.linear(x, weight, bias)
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

    def copy_pages(
        self,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        sources: torch.Tensor,
        targets: torch.Tensor,
        lens: torch.Tensor,
    ) -> None:
        """See ``Ops.copy_pages``."""
        for copy in zip(sources.tolist(), targets.tolist(), lens.tolist(), strict=True):
            self._kernels.copy_page(k_cache, v_cache, *copy)

    def apply_token_mask(self, logits: torch.Tensor, bitmask: torch.Tensor) -> None:
        """See ``Ops.apply_token_mask``."""
        self._kernels.apply_token_mask(logits, bitmask)


def _rows_where_torch_wins(ours: Product) -> int:
    """Return the least probed number of rows from which on torch's bf16 product is faster."""
    # 8 MiB of weights: more than a core's own caches hold, as in a model.
    weight = torch.ones(4096, 1024, dtype=torch.bfloat16)
    least = sys.maxsize
    for rows in reversed(PROBED_ROWS):
        x = torch.ones(rows, 1024, dtype=torch.bfloat16)
        if _best_time(F.linear, x, weight) >= _best_time(ours, x, weight):
            break
        least = rows
    return least


def _best_time(product: Product, x: torch.Tensor, weight: torch.Tensor) -> float:
    times = []
    for _ in range(4):  # the first prepares
        begin = time.perf_counter()
        product(x, weight, None)
        times.append(time.perf_counter() - begin)
    return min(times[1:])
