"""A buffer on the device through which pages arrive from the host, layers in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radixrt.runtime.transfer.copy_engine import CopyEngine

Int32 = NDArray[np.int32]

HALF_BYTES = 64 << 20
"""One half of the buffer is filled while the other one is emptied: a fill is a millisecond of the
bus, of which launching it takes a tenth."""

MIN_COPY_BYTES = 256 << 10
"""From here on the copy engine is as fast as with one block; layers of a page that are smaller are
copied together."""


class Staging:
    """Filled by the copy engine, on a stream of its own, and emptied on the caller's.

    ``host`` is [host_pages, num_layers, 2, page_size, num_kv_heads, head_dim], pinned. ``order``
    (int32, on the device) numbers the pages of a fill.
    """

    def __init__(self, host: torch.Tensor, device: torch.device, copy_engine: CopyEngine) -> None:
        layer = host[0, 0]
        self.min_layers = min(host.shape[1], -(-MIN_COPY_BYTES // layer.nbytes))
        # Sixteen at least, and a multiple: kernels are compiled for addresses like that.
        self._capacity = max(HALF_BYTES // layer.nbytes, 16 * host.shape[1])
        self._halves = torch.empty(
            (2, self._capacity, *layer.shape), dtype=host.dtype, device=device
        )
        self._emptied = [_recorded(), _recorded()]
        self._turn = 0
        self._host = host
        self._copy_engine = copy_engine
        self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        most = self._capacity // self.min_layers
        self.order = torch.arange(most, dtype=torch.int32, device=device)

    def fill(
        self, host_pages: Int32, first_layer: int, last_layer: int
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Copy layers [first, last) of ``host_pages``, int32 [n], a part of the pages at a time.

        Yields which pages of them have come and where they are, [pages, last - first, 2, …]. What
        is launched on the current stream before the next part is asked for may read it. The copies
        wait for nothing else: the host's pages have to be there when this is called.
        """
        num_layers = last_layer - first_layer
        most = self._capacity // num_layers // 16 * 16
        piece = self._host[0, :num_layers].nbytes
        first = np.uint64(self._host[0, first_layer].data_ptr())
        sources = first + host_pages.astype(np.uint64) * np.uint64(self._host[0].nbytes)
        for at in range(0, len(host_pages), most):
            part = slice(at, min(at + most, len(host_pages)))
            num_pages = part.stop - at
            buffer = self._halves[self._turn, : num_pages * num_layers]
            targets = np.arange(num_pages, dtype=np.uint64) * np.uint64(piece)
            targets += np.uint64(buffer.data_ptr())
            self._copying.wait_event(self._emptied[self._turn])
            self._copy_engine.copy(targets, sources[part], piece, self._copying)
            torch.cuda.current_stream().wait_event(_recorded(self._copying))
            yield part, buffer.view(num_pages, num_layers, *buffer.shape[1:])
            self._emptied[self._turn] = _recorded()
            self._turn = 1 - self._turn


def _recorded(stream: Any = None) -> Any:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
