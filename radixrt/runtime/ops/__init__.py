"""Operations of a device: the interface is in ``base``, one provider a file, chosen here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from radixrt.errors import ConfigError
from radixrt.runtime.choice import choose

if TYPE_CHECKING:
    import torch

    from radixrt.runtime.ops.base import Ops

PREFERRED = {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")}
"""Device type → providers that "auto" tries, best first."""


def choose_ops(device: torch.device, name: str = "auto") -> tuple[Ops, str]:
    """Return the operations of a device, the named provider or the best one that loads, and why
    that one.

    Raises ``ConfigError`` when the named provider is unknown, does not load or does not serve the
    device.
    """
    candidates = PREFERRED.get(device.type, ("reference",))
    return choose("ops", name, candidates, lambda candidate: _load(candidate, device))


def _load(name: str, device: torch.device) -> Ops:
    serves = {"cpu": "cpu", "triton": "cuda", "sgl": "cuda", "reference": device.type}
    if name not in serves:
        raise ConfigError(f"ops={name}: unknown; use auto, {', '.join(serves)}")
    if serves[name] != device.type:
        raise ConfigError(f"ops={name} does not serve device {device}; use ops=auto")
    try:
        match name:
            case "cpu":
                from radixrt.runtime.ops.cpu import CpuOps

                return CpuOps()
            case "triton":
                from radixrt.runtime.ops.triton import TritonOps

                return TritonOps(device)
            case "sgl":
                from radixrt.runtime.ops.sgl import SglOps

                return SglOps(device)
            case _:
                from radixrt.runtime.ops.reference import ReferenceOps

                return ReferenceOps()
    except ImportError as error:
        raise ConfigError(f"ops={name} is not available: {error}") from error
