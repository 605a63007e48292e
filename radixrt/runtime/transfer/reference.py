"""Moving pages with torch's operations, at once: the oracle, and for devices without kernels."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from radixrt.runtime import device as devices

Int32 = NDArray[np.int32]


class FinishedMove:
    """A move that was over when it was returned."""

    has_failed = False
    is_done = True

    def __init__(self, num_pages: int, seconds: float) -> None:
        self.num_pages = num_pages
        self.seconds = seconds

    def wait_layer(self, layer: int) -> None:
        """See ``Move``."""

    def wait_all(self) -> None:
        """See ``Move``."""

    def finish(self) -> None:
        """See ``Move``."""


class ReferenceMover:
    """The mover "reference"; see ``Mover``."""

    name = "reference"

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, host: torch.Tensor) -> None:
        self.host = host
        self._pools = (keys, values)

    def warm_up(self, num_pages: int) -> None:
        """See ``Mover``."""

    def load(self, pages: Int32, host_pages: Int32) -> FinishedMove:
        """See ``Mover``."""
        begin = time.perf_counter()
        to, of = self._index(pages), torch.from_numpy(host_pages.astype(np.int64))
        for half, pool in enumerate(self._pools):
            # [pages, layers, page_size, heads, dim] → layers first, as the pool is
            pool[:, to] = self.host[of, :, half].transpose(0, 1).to(pool.device)
        return self._finished(len(pages), begin)

    def store(self, pages: Int32, host_pages: Int32) -> FinishedMove:
        """See ``Mover``."""
        begin = time.perf_counter()
        of, to = self._index(pages), torch.from_numpy(host_pages.astype(np.int64))
        for half, pool in enumerate(self._pools):
            self.host[to, :, half] = pool[:, of].transpose(0, 1).to(self.host.device)
        return self._finished(len(pages), begin)

    def close(self) -> None:
        """See ``Mover``."""

    def _index(self, pages: Int32) -> torch.Tensor:
        return torch.from_numpy(pages.astype(np.int64)).to(self._pools[0].device)

    def _finished(self, num_pages: int, begin: float) -> FinishedMove:
        devices.synchronize(self._pools[0].device)
        return FinishedMove(num_pages, time.perf_counter() - begin)
