"""Attention over pages that are still on their way from the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from radixrt.cache.transfer import Move
    from radixrt.runtime.attention.base import AttentionBackend
    from radixrt.runtime.batch import ForwardBatch


class ArrivingPages:
    """A backend that waits for a layer's pages before it reads them; see ``AttentionBackend``.

    Attention is all that reads pages, so the forward is a layer behind the copy at the most.
    """

    def __init__(self, attention: AttentionBackend, move: Move) -> None:
        self.name = attention.name
        self._attention = attention
        self._move = move

    def plan(self, batch: ForwardBatch) -> None:
        """See ``AttentionBackend``."""
        self._attention.plan(batch)

    def run(
        self, layer: int, query: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
    ) -> torch.Tensor:
        """See ``AttentionBackend``."""
        self._move.wait_layer(layer)
        return self._attention.run(layer, query, k_cache, v_cache)
