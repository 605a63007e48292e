"""Moving pages between the device's pool and the host's: a mover a file, chosen here.

The protocol is ``radixrt.cache.transfer.Mover``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from radixrt.runtime.device import transfer_zeros

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from radixrt.cache.transfer import Mover
    from radixrt.runtime.scheduling.kv import KvPool


def choose_mover(pool: KvPool, num_host_pages: int) -> tuple[Mover, NDArray[np.uint8]]:
    """Return the mover of the pool's device, and as bytes, uint8 [num_host_pages, bytes of a page],
    the host's pool that it moves to and from.

    That pool is [num_host_pages, num_layers, 2, page_size, num_kv_heads, head_dim]: a page in one
    piece, of each layer the keys and then the values; pinned where there is a GPU.
    """
    num_layers, _, *page = pool.k.shape
    shape = (num_host_pages, num_layers, 2, *page)
    host = transfer_zeros(shape, pool.k.dtype, pool.k.device)
    pages = host.flatten(1).view(torch.uint8).numpy()
    if pool.k.device.type == "cpu":
        from radixrt.runtime.transfer.cpu import CpuMover

        return CpuMover(pool.k, pool.v, host), pages
    try:
        from radixrt.runtime.transfer.triton import TritonMover

        return TritonMover(pool.k, pool.v, host), pages
    except ImportError:
        from radixrt.runtime.transfer.reference import ReferenceMover

        return ReferenceMover(pool.k, pool.v, host), pages
