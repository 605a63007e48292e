"""Many copies in one call of CUDA's copy engine."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

PROC_MAPS = Path("/proc/self/maps")
FIRST_VERSION = 13
"""The CUDA runtime whose ``cudaMemcpyBatchAsync`` has the arguments that are given here."""

STREAM_ORDER = 1
"""cudaMemcpySrcAccessOrderStream: sources are read when the stream comes to them."""


class _Attributes(ctypes.Structure):
    """``cudaMemcpyAttributes``; the hints say nothing of memory that is pinned or the device's."""

    _fields_ = [
        ("order", ctypes.c_int),
        ("source_hint", ctypes.c_int * 2),
        ("target_hint", ctypes.c_int * 2),
        ("flags", ctypes.c_uint),
    ]


class CopyEngine:
    """``cudaMemcpyBatchAsync``, which torch does not offer. ``find`` returns one if there is one.

    A call a copy would take the host longer to make than the bus to carry out.
    """

    def __init__(self, runtime: ctypes.CDLL) -> None:
        self._copy_batch = runtime.cudaMemcpyBatchAsync

    @classmethod
    def find(cls) -> CopyEngine | None:
        """Return the copy engine of the CUDA runtime that torch has loaded; None where it has none,
        or one that is too old."""
        version = torch.version.cuda
        if version is None or int(version.partition(".")[0]) < FIRST_VERSION:
            return None
        loaded = [word for word in PROC_MAPS.read_text().split() if "/libcudart.so" in word]
        try:
            return cls(ctypes.CDLL(loaded[0]))
        except (IndexError, OSError, AttributeError):
            return None

    def copy(self, targets: UInt64, sources: UInt64, num_bytes: int, stream: Any) -> None:
        """Copy ``num_bytes`` from each address of ``sources`` (uint64 [n]) to the one of
        ``targets`` at its place, in any order, on a stream that is not the default one.

        Returns before that is done. Raises ``RuntimeError`` when CUDA refuses.
        """
        count = len(targets)
        assert count == len(sources)
        assert targets.dtype == sources.dtype == np.uint64
        assert targets.flags.c_contiguous
        assert sources.flags.c_contiguous
        sizes = np.full(count, num_bytes, np.uint64)
        attributes, first = _Attributes(order=STREAM_ORDER), ctypes.c_size_t(0)
        error = self._copy_batch(
            ctypes.c_void_p(targets.ctypes.data),
            ctypes.c_void_p(sources.ctypes.data),
            ctypes.c_void_p(sizes.ctypes.data),
            ctypes.c_size_t(count),
            ctypes.byref(attributes),
            ctypes.byref(first),
            ctypes.c_size_t(1),
            ctypes.c_void_p(stream.cuda_stream),
        )
        if error:
            raise RuntimeError(f"cudaMemcpyBatchAsync of {count} copies: CUDA error {error}")
