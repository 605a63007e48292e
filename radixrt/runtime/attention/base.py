"""The interface of attention backends: ``plan`` once a step, ``run`` once a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # AttentionSpec is part of the model's config, which is read without torch.
    import torch

    from radixrt.runtime.batch import ForwardBatch


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What one layer's attention computes. ``window`` 0 is full causal attention, otherwise a token
    sees itself and the ``window - 1`` tokens before it; ``softcap`` 0 is none (Gemma 2)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0


class AttentionBackend(Protocol):
    """Causal attention of a ragged batch over paged K and V.

    Constructed with the specs of all layers and the page size; raises ``ConfigError`` there, not
    later, when it cannot serve one of them.
    """

    name: str

    def plan(self, batch: ForwardBatch) -> None:
        """Prepare for the layers of one step. Valid until the next ``plan``."""
        ...

    def run(
        self, layer: int, query: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
    ) -> torch.Tensor:
        """Return the attention output [T, num_heads, head_dim] of layer ``layer``.

        ``query`` is [T, num_heads, head_dim], rotated; ``k_cache``/``v_cache`` are the layer's
        pools [num_pages, page_size, num_kv_heads, head_dim], the step's own tokens already written.
        """
        ...
