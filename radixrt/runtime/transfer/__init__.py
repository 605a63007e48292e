"""Moving pages between the device's pool and the host's: a mover a file, chosen here.

The protocol is ``radixrt.cache.transfer.Mover``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from radixrt.runtime import device as devices

if TYPE_CHECKING:
    from radixrt.cache.transfer import Mover
    from radixrt.runtime.scheduling.kv import KvPool


def choose_mover(pool: KvPool, num_host_pages: int) -> tuple[Mover, devices.HostMemory]:
    """Return the mover of the pool's device and the host's pool it moves to and from.

    The pool is [num_host_pages, num_layers, 2, page_size, num_kv_heads, head_dim]: a page in one
    piece, of each layer the keys and then the values; pinned where there is a GPU.
    """
    num_layers, _, *page = pool.k.shape
    shape = (num_host_pages, num_layers, 2, *page)
    memory = devices.HostMemory(shape, pool.k.dtype, pool.k.device)
    if pool.k.device.type == "cpu":
        from radixrt.runtime.transfer.cpu import CpuMover

        return CpuMover(pool.k, pool.v, memory.tensor), memory
    try:
        from radixrt.runtime.transfer.triton import TritonMover

        return TritonMover(pool.k, pool.v, memory.tensor), memory
    except ImportError:
        from radixrt.runtime.transfer.reference import ReferenceMover

        return ReferenceMover(pool.k, pool.v, memory.tensor), memory
