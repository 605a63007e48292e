"""Attention backends: the interface is in ``base``, one backend a file, chosen here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from radixrt.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from radixrt.runtime.attention.base import AttentionBackend, AttentionSpec

PREFERRED = {"cpu": ("cpu", "reference"), "cuda": ("grouped", "triton", "reference")}
"""Device type → backends that "auto" tries, best first. "grouped" is Triton's decode, which reads a
shared prefix once, with FlashInfer's prefill."""

log = logging.getLogger(__name__)


def choose_attention(
    name: str,
    specs: Sequence[AttentionSpec],
    page_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> AttentionBackend:
    """Return the attention backend for a model: the named one, or the best one that serves it.

    ``specs`` has one entry a layer, ``dtype`` is the queries' and the pool's. "auto" logs a warning
    with the reason when it falls back. Raises ``ConfigError`` when the named backend is unknown,
    does not load or cannot serve this configuration.
    """
    if name != "auto":
        return _load(name, specs, page_size, device, dtype)
    candidates = PREFERRED.get(device.type, ("reference",))
    for candidate in candidates[:-1]:
        try:
            return _load(candidate, specs, page_size, device, dtype)
        except ConfigError as error:
            log.warning("%s; trying the next backend", error)
    return _load(candidates[-1], specs, page_size, device, dtype)


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
        "sgl": "cuda",
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

                return SplitAttention(
                    TritonAttention(specs, page_size, device),
                    FlashInferPrefill(specs, page_size, device, dtype),
                )
            case "triton":
                from radixrt.runtime.attention.triton import TritonAttention

                return TritonAttention(specs, page_size, device)
            case "reference":
                from radixrt.runtime.attention.reference import ReferenceAttention

                return ReferenceAttention(specs, page_size)
            case _:
                raise ConfigError(f"attention={name} is not available yet; use attention=auto")
    except ImportError as error:
        raise ConfigError(f"attention={name} is not available: {error}") from error
