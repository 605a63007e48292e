"""Devices: which there are, what they can hold, waiting for them. All of torch's CUDA names."""

from __future__ import annotations

import contextlib
import math
import mmap
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radixrt.errors import ConfigError
from radixrt.runtime.host import (
    MemoryInfo,
    host_memory,
    num_cores,
    peak_host_memory,
    resident_memory,
)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_TORCH_TYPES = {
    "float32": torch.float32,
    "int32": torch.int32,
    "int64": torch.int64,
}
"""Types that ``upload`` moves, by numpy's names."""

HUGE_PAGE = 2 << 20


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name ("auto": the first CUDA device, else the CPU); raises
    ``ConfigError`` when there is none."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name}: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ConfigError(f"device={name} is not supported; use auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise ConfigError(f"device={name}: torch {torch.__version__} finds no CUDA; use device=cpu")
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: there are {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)


def choose_dtype(name: str, checkpoint: str, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in: the named one, or for "auto" the checkpoint's.

    Both are torch's names. A CPU has no float16: "auto" takes bfloat16 there, an explicit float16
    raises ``ConfigError``.
    """
    wanted = checkpoint if name == "auto" else name
    if wanted not in DTYPES:
        raise ConfigError(f"dtype={name}: use auto, {', '.join(DTYPES)}")
    if wanted == "float16" and device.type == "cpu":
        if name == "auto":
            return torch.bfloat16
        raise ConfigError("dtype=float16 is not supported on a CPU; use bfloat16 or float32")
    return DTYPES[wanted]


def memory_info(device: torch.device) -> MemoryInfo:
    """Return the device's memory; on a CPU within the limits of the control groups we are in."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # What torch's allocator holds and does not use is ours to allocate as well.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return MemoryInfo(total, free + unused)
    return host_memory()


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement for ``peak_memory``; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use since ``reset_peak_memory`` (CPU: since the process started)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_host_memory()


def allocated_memory(device: torch.device) -> int:
    """Return the bytes that torch has allocated on a CUDA device, or that we have resident."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return resident_memory()


def used_memory(device: torch.device) -> int:
    """Return the bytes of a CUDA device that are in use, by anybody; 0 for a CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def synchronize(device: torch.device) -> None:
    """Wait until everything launched on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_unused(device: torch.device) -> None:
    """Give memory that torch holds without using it back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


class _Packing:
    """Arrays one after the other in one block of bytes, each at a multiple of 16."""

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self.arrays = [np.ascontiguousarray(array) for array in arrays]
        ends = np.cumsum([-(-array.nbytes // 16) * 16 for array in self.arrays])
        self.starts = [0, *ends.tolist()]

    def pack(self, arrays: Sequence[NDArray[Any]]) -> torch.Tensor:
        """Return the bytes of ``arrays``, each at its place, up to the end of the last one.

        The block is pinned, and reused only after its copy: torch's allocator of host memory sees
        to that.
        """
        num_bytes = self.starts[-2] + arrays[-1].nbytes
        packed = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        host = packed.numpy()
        for array, start in zip(arrays, self.starts, strict=False):
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            host[start : start + array.nbytes] = flat
        return packed

    def views(self, packed: torch.Tensor) -> list[torch.Tensor]:
        """Return the arrays as tensors over the block on the device."""
        return [
            packed[start : start + array.nbytes]
            .view(_TORCH_TYPES[array.dtype.name])
            .view(array.shape)
            for array, start in zip(self.arrays, self.starts, strict=False)
        ]


def upload(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Return the arrays as tensors on the device, moved by one copy that nobody waits for.

    On a CPU the tensors share the arrays' memory.
    """
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    packing = _Packing(arrays)
    return packing.views(packing.pack(packing.arrays).to(device, non_blocking=True))


class AheadUpload:
    """Arrays on their way to a device that other work keeps busy: they are copied meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = copy_stream(device) if device.type == "cuda" else None

    def room(self, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """Return an array to be filled and uploaded: from where it is, if it is pinned."""
        if self._stream is None:
            return np.empty(shape, np.int32)
        # Its memory is reused only after its copy: torch's allocator of host memory sees to that.
        room: NDArray[np.int32] = torch.empty(shape, dtype=torch.int32, pin_memory=True).numpy()
        return room

    def upload(self, array: NDArray[np.int32]) -> torch.Tensor:
        """Return what ``room`` returned, filled by now, as a tensor for work that is queued from
        now on."""
        if self._stream is None:
            return torch.from_numpy(array)
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            tensor = torch.from_numpy(array).to(self._device, non_blocking=True)
        current.wait_stream(self._stream)
        tensor.record_stream(current)
        return tensor


class FixedUpload:
    """Arrays as tensors on a CUDA device whose memory stays in place, for recorded work.

    ``refill`` sends new contents over a stream of their own while earlier work still runs; only a
    short copy on the device waits its turn.
    """

    def __init__(
        self, arrays: Sequence[NDArray[Any]], stream: torch.cuda.Stream, device: torch.device
    ) -> None:
        self._packing = _Packing(arrays)
        num_bytes = self._packing.starts[-1]
        self._fixed = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._arriving = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._stream = stream
        self._taken = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._taken.record()
        self.tensors = self._packing.views(self._fixed)
        first = self._packing.pack(self._packing.arrays)
        self._fixed[: len(first)].copy_(first, non_blocking=True)

    def refill(self, arrays: Sequence[NDArray[Any]]) -> bool:
        """Overwrite with arrays of the same types and row shapes, the rest of the rows is then
        undefined; False, and nothing changed, when one of them has more rows."""
        for new, old in zip(arrays, self._packing.arrays, strict=True):
            assert new.dtype == old.dtype, (new.dtype, old.dtype)
            assert new.shape[1:] == old.shape[1:], (new.shape, old.shape)
            if len(new) > len(old):
                return False
        packed = self._packing.pack(arrays)
        num_bytes = len(packed)
        with torch.cuda.stream(self._stream):
            self._taken.wait(self._stream)
            self._arriving[:num_bytes].copy_(packed, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._stream)
        self._fixed[:num_bytes].copy_(self._arriving[:num_bytes], non_blocking=True)
        self._taken.record()
        return True


def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a stream of its own for copies to a CUDA device."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class HostStream:
    """Copies large tensors from pageable memory (mapped files) to a CUDA device through two pinned
    buffers: while one is on its way the next is read from the file, which pageable copies wait for.
    """

    def __init__(self, num_bytes: int = 64 << 20) -> None:
        self._buffers = [torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True) for _ in "ab"]
        self._taken = [torch.cuda.Event() for _ in "ab"]  # type: ignore[no-untyped-call]
        self._next = 0

    def copy(self, source: torch.Tensor, out: torch.Tensor) -> None:
        """Write ``source`` to ``out`` (contiguous, same shape and dtype); returns before it is all
        there, in the order of the stream."""
        assert source.dtype == out.dtype, (source.dtype, out.dtype)
        assert source.shape == out.shape, (source.shape, out.shape)
        source_bytes = source.contiguous().view(-1).view(torch.uint8)
        out_bytes = out.view(-1).view(torch.uint8)
        size = len(self._buffers[0])
        for begin in range(0, len(source_bytes), size):
            part = source_bytes[begin : begin + size]
            buffer, taken = self._buffers[self._next], self._taken[self._next]
            self._next = 1 - self._next
            taken.synchronize()
            buffer[: len(part)].copy_(part)
            out_bytes[begin : begin + len(part)].copy_(buffer[: len(part)], non_blocking=True)
            taken.record()


class Readback:
    """Tensors on their way to the host; later work on the device does not delay them."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._host = tensors
        if tensors[0].device.type == "cuda":
            self._host = tuple(
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors
            )
            for host, tensor in zip(self._host, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors on the host once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor of zeros for a large pool that is read and written in scattered pieces.

    On a CPU its memory is touched only as it is used, in huge pages where the system allows them:
    the small ones' address translation would take as long as the copies.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or num_bytes < HUGE_PAGE:
        return torch.zeros(*shape, dtype=dtype, device=device)
    return torch.from_numpy(_pages_of_its_own(num_bytes)).view(dtype).view(*shape)


def transfer_zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor of zeros on the host that the device reads and writes by itself: pinned for a
    GPU as long as anybody holds it, which must be until the last copy; as ``zeros`` for a CPU.

    Raises ``ConfigError`` where it cannot be pinned.
    """
    if device.type == "cpu":
        return zeros(shape, dtype, device)
    # Not pin_memory=True: torch's allocator of pinned memory rounds up to a power of two. In pages
    # of its own: one that holds a neighbour's memory as well can be pinned only once.
    block = _pages_of_its_own(math.prod(shape) * dtype.itemsize)
    address, cuda = block.ctypes.data, torch.cuda.cudart()  # type: ignore[no-untyped-call]
    portable_and_mapped = 3
    error = int(cuda.cudaHostRegister(address, block.nbytes, portable_and_mapped))
    if error:
        with contextlib.suppress(RuntimeError):  # else the next launch raises it once more
            torch.zeros(1, device=device)
        raise ConfigError(
            f"host_memory: {block.nbytes} bytes cannot be pinned (CUDA error {error}); "
            "lower host_memory or raise the limit of locked memory (ulimit -l)"
        )
    # The driver would take what gets its addresses next for pinned, even memory of the device's
    # ("resource already mapped").
    weakref.finalize(block, cuda.cudaHostUnregister, address).atexit = False
    return torch.from_numpy(block).view(dtype).view(*shape)


def _pages_of_its_own(num_bytes: int) -> NDArray[np.uint8]:
    block = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # the kernel has none
            block.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(block, np.uint8)


class CapturedGraph:
    """The device work of ``launch``, recorded once and replayed with one call.

    ``launch`` reads and writes the same memory each time; ``pool`` is shared by graphs that never
    run at the same time.
    """

    def __init__(self, launch: Callable[[], torch.Tensor], pool: Any = None) -> None:
        # Outside of the capture first: libraries allocate and compile when they are first used.
        launch()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._result = launch()

    @property
    def pool(self) -> Any:
        """The memory pool of the graph's temporaries."""
        return self._graph.pool()

    def seconds(self) -> float:
        """Return how long it takes: the shorter of two times, after a first that does not count."""
        self._graph.replay()
        times = []
        for _ in range(2):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            self._graph.replay()
            end.record()
            end.synchronize()
            times.append(float(begin.elapsed_time(end)) / 1e3)
        return min(times)

    def replay(self) -> torch.Tensor:
        """Run it and return its result, which the next replay overwrites."""
        self._graph.replay()
        return self._result


def describe(device: torch.device) -> str:
    """Return the device in words: "NVIDIA H200 (141 GiB)", "CPU, 2 threads (23 GiB)"."""
    size = f"{memory_info(device).total / 2**30:.0f} GiB"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({size})"
    return f"CPU, {torch.get_num_threads()} threads ({size})"


def num_processors(device: torch.device) -> int:
    """Return how many multiprocessors a CUDA device has; 64 for a CPU that interprets kernels."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return 64


def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Return how our Triton kernels are launched: ``DEPENDENT`` where one can start while the one
    before it ends, which are NVIDIA's Hopper and later."""
    if (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device)[0] >= 9
    ):
        return {"DEPENDENT": True, "launch_pdl": True}
    return {"DEPENDENT": False}  # Triton's other back ends do not know the option


def set_num_threads(count: int | None = None) -> int:
    """Let torch's CPU operations use ``count`` threads, all our cores by default; return it."""
    count = count or num_cores()
    torch.set_num_threads(count)
    return count


SMALL = 1 << 18
"""Elements of a tensor up to which more threads save at most a millisecond an operation."""


@contextlib.contextmanager
def one_thread_if_small(tensor: torch.Tensor) -> Iterator[None]:
    """Let this thread do torch's CPU operations alone meanwhile, if ``tensor`` is small.

    Each operation waits for all threads, and where cores are short one that waits for its time
    slice holds it up for tens of milliseconds.
    """
    if tensor.device.type != "cpu" or tensor.numel() > SMALL:
        yield
        return
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
