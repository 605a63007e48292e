"""What a runtime's memory will go to, before anything is loaded.

Weights and pages are exact: they follow from the model's shape. The largest step is measured when a
runtime starts; here it is counted from the tensors that are alive together at its peak, which are
few and large. Where the device is not at hand, what its driver and libraries take is what they took
on an H200 with CUDA 12.9.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import prod

import torch

from radixrt.config import RuntimeConfig
from radixrt.errors import ConfigError
from radixrt.runtime import device as devices
from radixrt.runtime.engine.assemble import GRAPH_BYTES, MORE_LOGITS_ROWS, with_context
from radixrt.runtime.engine.memory import MemoryPlan, bytes_per_page, plan_memory
from radixrt.runtime.engine.tiers import host_bytes
from radixrt.runtime.forward.graph import graph_sizes
from radixrt.runtime.host import MemoryInfo
from radixrt.runtime.model.config import ModelConfig
from radixrt.runtime.model.decoder import weight_shapes

WORKSPACE_BYTES = 384 << 20
"""What attention kernels of a GPU keep for themselves in a step."""

HOST_BYTES = 32 << 20
"""What a CPU's libraries touch for the first time in a step: buffers and stacks of threads."""

CONTEXT_BYTES = 1100 << 20
"""What the driver's context and the libraries take of a GPU beside torch's allocations."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the runtime would run. ``is_assumed``: it is described, not looked at."""

    is_gpu: bool
    memory: MemoryInfo
    name: str
    is_assumed: bool = False


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would be planned. ``config`` is resolved; ``host_tokens`` fit into the host's tier."""

    config: RuntimeConfig
    model: ModelConfig
    dtype: torch.dtype
    memory: MemoryPlan
    page_bytes: int
    host_tokens: int

    def num_requests(self, context: int) -> int:
        """Return how many requests of ``context`` tokens can be computed at the same time."""
        return min(self.config.max_running, self.memory.kv_tokens // context)


def machine_here(config: RuntimeConfig) -> Machine:
    """Return the device that the config chooses on this machine. Raises ``ConfigError``."""
    device = devices.choose_device(config.device)
    return Machine(device.type == "cuda", devices.memory_info(device), devices.describe(device))


def machine_with(memory_bytes: int, config: RuntimeConfig) -> Machine:
    """Return a machine whose device has so much memory: a GPU, or with ``device=cpu`` a CPU."""
    is_gpu = config.device != "cpu"
    name = f"a {'GPU' if is_gpu else 'CPU'} with {memory_bytes / (1 << 30):.2f} GiB (assumed)"
    return Machine(is_gpu, MemoryInfo(memory_bytes, memory_bytes), name, is_assumed=True)


def forecast(config: RuntimeConfig, model: ModelConfig, machine: Machine) -> Forecast:
    """Return what a runtime with ``config`` would plan on ``machine``.

    Raises ``ConfigError``, with the numbers, when the model and its largest step do not fit.
    """
    device = torch.device("cuda" if machine.is_gpu else "cpu")
    resolved = config.resolve(device=device.type, memory_bytes=machine.memory.total)
    resolved = with_context(resolved, model)
    dtype = devices.choose_dtype(config.dtype, model.dtype, device)
    weights = weight_bytes(model, dtype)
    taken = machine.memory.total - machine.memory.available
    memory = plan_memory(
        resolved,
        model,
        dtype=dtype,
        is_gpu=machine.is_gpu,
        before=machine.memory,
        weights=weights,
        step=step_bytes(resolved, model, dtype, is_gpu=machine.is_gpu),
        used=taken + weights + CONTEXT_BYTES if machine.is_gpu else 0,
    )
    page_bytes = bytes_per_page(model, resolved.page_size, dtype)
    host_pages = host_bytes(resolved, device.type) // page_bytes if resolved.cache else 0
    return Forecast(resolved, model, dtype, memory, page_bytes, host_pages * resolved.page_size)


def weight_bytes(model: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of all weights, a tied head counted once."""
    return dtype.itemsize * sum(prod(shape) for shape in weight_shapes(model).values())


def step_bytes(
    config: RuntimeConfig, model: ModelConfig, dtype: torch.dtype, *, is_gpu: bool
) -> int:
    """Return what the largest steps take (``profile.WorstSteps``) with the recorded graphs.

    A step has the K and V it computes in pages of their own, and the larger of what a layer's MLP
    and what the choice of tokens keeps: a prompt's chunk has many tokens and few pages, a decode
    step a page for each of its rows.
    """
    chunk = min(config.max_step_tokens, config.context_length)
    rows = config.max_running
    chunk_logits = min(chunk, rows + MORE_LOGITS_ROWS)
    page = bytes_per_page(model, config.page_size, dtype)
    pages = -(-chunk // config.page_size) + 1
    steps = [
        pages * page + _working_bytes(model, dtype, chunk, chunk_logits),
        (rows + 1) * page + _working_bytes(model, dtype, rows, rows),
    ]
    if not is_gpu:
        return max(steps) + HOST_BYTES
    graphs = 0
    if config.graphs:
        recorded = _layer_bytes(model, dtype, rows) + rows * model.vocab_size * dtype.itemsize
        graphs = recorded + GRAPH_BYTES * len(graph_sizes(rows))
    return max(steps) + WORKSPACE_BYTES + graphs


def smaller(config: RuntimeConfig, model: ModelConfig, machine: Machine) -> dict[str, object]:
    """Return options that make a model fit which does not: the first that do, from what costs
    least; empty when nothing does."""
    resolved = config.resolve(
        device="cuda" if machine.is_gpu else "cpu", memory_bytes=machine.memory.total
    )
    fewer_rows = [rows for rows in (1024, 512, 256, 128, 64, 16) if rows < resolved.max_running]
    attempts: list[dict[str, object]] = [{"max_running": rows} for rows in fewer_rows]
    for tokens in (4096, 2048, 1024, 512):
        if tokens < resolved.max_step_tokens:
            rows = min(resolved.max_running, 64)
            attempts.append({"max_running": rows, "max_step_tokens": tokens})
    if model.dtype == "float32" or config.dtype == "float32":
        attempts += [{"dtype": "bfloat16"}, *({"dtype": "bfloat16", **a} for a in attempts)]
    for attempt in attempts:
        try:
            forecast(dataclasses.replace(config, **attempt), model, machine)  # type: ignore[arg-type]
        except ConfigError:
            continue
        return attempt
    return {}


def _working_bytes(model: ModelConfig, dtype: torch.dtype, tokens: int, logits: int) -> int:
    """Return what is alive at the peak of a step beside its pages."""
    # Logits, the copy that penalties edit, and one that probabilities are made of, both f32.
    chosen = logits * model.vocab_size * (dtype.itemsize + 4 + 4)
    return max(_layer_bytes(model, dtype, tokens), chosen)


def _layer_bytes(model: ModelConfig, dtype: torch.dtype, tokens: int) -> int:
    """Return what a layer's MLP keeps: the residual, its input, gate and up, and their product."""
    return tokens * dtype.itemsize * (2 * model.hidden_size + 3 * model.intermediate_size)
