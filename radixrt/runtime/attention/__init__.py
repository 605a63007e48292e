"""Attention backends: the interface is in ``base``, one backend a file, chosen here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from radixrt.errors import ConfigError
from radixrt.runtime.choice import choose

if TYPE_CHECKING:
    import torch

    from radixrt.runtime.attention.base import AttentionBackend, AttentionSpec

PREFERRED = {"cpu": ("cpu", "reference"), "cuda": ("grouped", "triton", "reference")}
"""Device type → backends that "auto" tries, best first. "grouped" is Triton's decode, which reads a
shared prefix once, with FlashInfer's prefill for steps that are mostly of prompts."""


def choose_attention(
    name: str,
    specs: Sequence[AttentionSpec],
    page_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[AttentionBackend, str]:
    """Return the attention backend for a model, the named one or the best one that serves it, and
    why that one.

    ``specs`` has one entry a layer, ``dtype`` is the queries' and the pool's. Raises
    ``ConfigError`` when the named backend is unknown, does not load or cannot serve this
    configuration.
    """
    candidates = PREFERRED.get(device.type, ("reference",))
    return choose(
        "attention",
        name,
        candidates,
        lambda candidate: _load(candidate, specs, page_size, device, dtype),
    )


def _load(
    name: str,
    specs: Sequence[AttentionSpec],
    page_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> AttentionBackend:
    serves = {
        "cpu": "cpu",
        "flashinfer": "cuda",
        "grouped": "cuda",
        "triton": "cuda",
        "reference": device.type,
    }
    if name not in serves:
        raise ConfigError(f"attention={name}: unknown; use auto, {', '.join(serves)}")
    if serves[name] != device.type:
        raise ConfigError(f"attention={name} does not serve device {device}; use attention=auto")
    try:
        match name:
            case "cpu":
                from radixrt.runtime.attention.cpu import CpuAttention

                return CpuAttention(specs, page_size, device, dtype)
            case "flashinfer":
                from radixrt.runtime.attention.flashinfer import flashinfer_attention

                return flashinfer_attention(specs, page_size, device, dtype)
            case "grouped":
                from radixrt.runtime.attention.flashinfer import FlashInferPrefill
                from radixrt.runtime.attention.split import SplitAttention
                from radixrt.runtime.attention.triton import TritonAttention

                prefill = FlashInferPrefill(specs, page_size, device, dtype)
                return SplitAttention(
                    TritonAttention(specs, page_size, device),
                    prefill,
                    few=True,
                    group=specs[0].num_heads // specs[0].num_kv_heads if prefill.is_fa3 else 0,
                )
            case "triton":
                from radixrt.runtime.attention.triton import TritonAttention

                return TritonAttention(specs, page_size, device)
            case _:
                from radixrt.runtime.attention.reference import ReferenceAttention

                return ReferenceAttention(specs, page_size)
    except ImportError as error:
        raise ConfigError(f"attention={name} is not available: {error}") from error
