"""One memory budget: weights, the peak of the worst step, and KV with what remains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from radixrt.config import RuntimeConfig, parse_memory
from radixrt.errors import ConfigError
from radixrt.runtime import device as devices
from radixrt.runtime.host import MemoryInfo
from radixrt.runtime.model.config import ModelConfig

AUTO_GPU_SHARE = 0.9
AUTO_HOST_SHARE = 0.25
MIN_PAGES = 8
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of one device: ``budget`` = ``weights`` + ``step`` (the worst step's peak, recorded
    graphs included) + ``other`` (what else is in use there: contexts, libraries' workspaces, other
    processes; on a GPU alone) + ``kv``.

    ``num_pages`` counts page 0, which belongs to nobody.
    """

    budget: int
    weights: int
    step: int
    other: int
    kv: int
    num_pages: int
    page_size: int

    @property
    def kv_tokens(self) -> int:
        """Tokens that fit into the pages."""
        return (self.num_pages - 1) * self.page_size

    def __str__(self) -> str:
        return (
            f"{_human(self.budget)} = weights {_human(self.weights)} + step {_human(self.step)} + "
            + (f"other {_human(self.other)} + " if self.other else "")
            + f"KV {_human(self.kv)} ({self.kv_tokens:,} tokens)"
        )


def bytes_per_page(model: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Return the bytes of one page: K and V of all layers."""
    per_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype.itemsize
    return per_token * page_size


def plan_memory(
    config: RuntimeConfig,
    model: ModelConfig,
    *,
    dtype: torch.dtype,
    is_gpu: bool,
    before: MemoryInfo,
    weights: int,
    step: int,
    used: int = 0,
) -> MemoryPlan:
    """Return how the budget is spent; ``before`` is the memory before anything was loaded, ``used``
    the bytes of a GPU that are in use with the weights loaded.

    A share of a GPU counts whoever uses it; a size is ours alone.
    ``auto`` is 90 % of a GPU's memory. On a CPU, which others use as well, KV gets what all
    running requests need at full context, at most a quarter of the memory that is available.
    Raises ``ConfigError`` when nothing is left for KV.
    """
    page_bytes = bytes_per_page(model, config.page_size, dtype)
    total = before.total if is_gpu else before.available
    wanted = parse_memory(config.memory, total_bytes=total)
    if wanted is not None:
        budget = wanted
    elif is_gpu:
        budget = int(before.total * AUTO_GPU_SHARE)
    else:
        pages_per_request = -(-config.context_length // config.page_size)
        enough = (config.max_running * pages_per_request + 1) * page_bytes
        budget = weights + step + min(int(before.available * AUTO_HOST_SHARE), enough)
    others = 0 if wanted is None or "%" in config.memory else before.total - before.available
    other = max(0, used - weights - others) if is_gpu else 0
    num_pages = (budget - weights - step - other) // page_bytes
    most = before.total if is_gpu else max(before.available, weights + step)
    if num_pages < MIN_PAGES or budget > most:
        raise ConfigError(
            f"memory={config.memory} is {_human(budget)} of {_human(before.available)} available; "
            f"weights take {_human(weights)}, the largest step {_human(step)}"
            f"{f', what else is in use {_human(other)}' if other else ''}, and at least "
            f"{_human(MIN_PAGES * page_bytes)} are needed for KV: change memory, or lower "
            f"max_step_tokens={config.max_step_tokens} or max_running={config.max_running}"
        )
    return MemoryPlan(
        budget, weights, step, other, num_pages * page_bytes, int(num_pages), config.page_size
    )


def measure_peak(device: torch.device, run: Callable[[], None], least: int) -> int:
    """Return the bytes that ``run`` needs beyond what is allocated now, at least ``least``.

    On a GPU the allocator counts them. On a CPU the kernel's peak of resident memory is reset and
    read where it allows that; what the allocator had cached before does not show there, so
    ``least``, what the caller knows must be allocated, bounds it from below.
    """
    devices.release_unused(device)
    devices.reset_peak_memory(device)
    if device.type == "cpu":
        _reset_host_peak()
    before = devices.allocated_memory(device)
    run()
    devices.synchronize(device)
    return max(least, devices.peak_memory(device) - before)


def _reset_host_peak() -> None:
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return  # the peak since start-up is an upper bound then


def _human(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
