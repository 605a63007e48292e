"""Devices: which there are, what they can hold, waiting for them. All of torch's CUDA names."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radixrt.errors import ConfigError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_TORCH_TYPES = {
    "int32": torch.int32,
    "int64": torch.int64,
}
"""Types that ``upload`` moves, by numpy's names."""

HUGE_PAGE = 2 << 20

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Bytes of a device's memory: what there is, and what can still be allocated."""

    total: int
    available: int


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


def host_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> MemoryInfo:
    """Return the host's memory from /proc/meminfo, cut to the control groups' limits (v1 and v2).

    What the page cache holds counts as available.
    """
    meminfo = {}
    for line in (proc / "meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        meminfo[key] = int(value.split()[0]) * 1024
    total, available = meminfo["MemTotal"], meminfo["MemAvailable"]
    for folder, limit_name, usage_name in _memory_cgroups(proc, cgroup):
        limit, usage = _number(folder / limit_name), _number(folder / usage_name)
        if limit is None or usage is None or limit >= meminfo["MemTotal"]:
            continue
        total = min(total, limit)
        available = min(available, max(0, limit - usage + _page_cache(folder)))
    return MemoryInfo(total, available)


def peak_host_memory() -> int:
    """Return the most bytes this process has had resident since it started."""
    for line in (PROC / "self" / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


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
    pages = int((PROC / "self" / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def synchronize(device: torch.device) -> None:
    """Wait until everything launched on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_unused(device: torch.device) -> None:
    """Give memory that torch holds without using it back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Upload:
    """Arrays as tensors on a device, moved by one copy that nobody waits for.

    ``refill`` overwrites them in place, for work that was recorded once and reads the same memory
    each time.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]], device: torch.device) -> None:
        self._arrays = [np.ascontiguousarray(array) for array in arrays]
        ends = np.cumsum([-(-array.nbytes // 16) * 16 for array in self._arrays])
        self._starts = [0, *ends.tolist()]
        self._packed: torch.Tensor | None = None
        if device.type == "cpu":
            self._arrays = [array.copy() for array in self._arrays]
            self.tensors = [torch.from_numpy(array) for array in self._arrays]
            return
        self._packed = self._pack(self._arrays).to(device, non_blocking=True)
        self.tensors = [
            self._packed[start : start + array.nbytes]
            .view(_TORCH_TYPES[array.dtype.name])
            .view(array.shape)
            for array, start in zip(self._arrays, self._starts, strict=False)
        ]

    def refill(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Overwrite with arrays of the same types and shapes, or of fewer rows (the rest of the
        rows is then undefined)."""
        for new, old in zip(arrays, self._arrays, strict=True):
            assert new.dtype == old.dtype, (new.dtype, old.dtype)
            assert new.shape[1:] == old.shape[1:], (new.shape, old.shape)
            assert len(new) <= len(old), (new.shape, old.shape)
        if self._packed is not None:
            self._packed.copy_(self._pack(arrays), non_blocking=True)
            return
        for new, old in zip(arrays, self._arrays, strict=True):
            old[: len(new)] = new

    def _pack(self, arrays: Sequence[NDArray[Any]]) -> torch.Tensor:
        # A pinned block is reused only after its copy: torch's allocator of host memory sees to it.
        packed = torch.empty(self._starts[-1], dtype=torch.uint8, pin_memory=True)
        host = packed.numpy()
        for array, start in zip(arrays, self._starts, strict=False):
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            host[start : start + array.nbytes] = flat
        return packed


def upload(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Return the arrays as tensors on the device, moved by one copy that nobody waits for.

    On a CPU the tensors share the arrays' memory.
    """
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    return Upload(arrays, device).tensors


class Readback:
    """A tensor on its way to the host; later work on the device does not delay it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> torch.Tensor:
        """Return the tensor on the host once it is there."""
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
    block = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # the kernel has none
            block.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(block, np.uint8)).view(dtype).view(*shape)


class HostMemory:
    """Memory of the host that the device reads and writes by itself: pinned for a GPU, plain memory
    for a CPU, where it is touched only as it is used.

    ``tensor`` is not initialised where it is pinned. ``close`` unpins it, after the last copy.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self._is_pinned = device.type == "cuda"
        if not self._is_pinned:
            self.tensor = zeros(shape, dtype, device)
            return
        # Not pin_memory=True: torch's allocator of pinned memory rounds up to a power of two.
        self.tensor = torch.empty(*shape, dtype=dtype)
        portable_and_mapped = 3
        error = int(
            torch.cuda.cudart().cudaHostRegister(  # type: ignore[no-untyped-call]
                self.tensor.data_ptr(), self.tensor.nbytes, portable_and_mapped
            )
        )
        if error:
            raise ConfigError(
                f"host_memory: {self.tensor.nbytes} bytes cannot be pinned (CUDA error {error}); "
                "lower host_memory or raise the limit of locked memory (ulimit -l)"
            )

    @property
    def pages(self) -> NDArray[np.uint8]:
        """The memory as bytes, uint8 [first dimension, bytes of the rest]; shares it."""
        return self.tensor.flatten(1).view(torch.uint8).numpy()

    def close(self) -> None:
        """Unpin the memory; idempotent."""
        if self._is_pinned:
            self._is_pinned = False
            torch.cuda.cudart().cudaHostUnregister(self.tensor.data_ptr())  # type: ignore[no-untyped-call]


class CapturedGraph:
    """The device work of ``launch``, recorded once and replayed with one call.

    ``launch`` reads and writes the same memory each time; ``pool`` is shared by graphs that never
    run at the same time.
    """

    def __init__(self, launch: Callable[[], torch.Tensor], pool: Any = None) -> None:
        # Outside of the capture first: libraries allocate and compile when they are first used.
        for _ in range(2):
            launch()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._result = launch()

    @property
    def pool(self) -> Any:
        """The memory pool of the graph's temporaries."""
        return self._graph.pool()

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


def num_cores(cgroup: Path = CGROUP) -> int:
    """Return the cores this process may use: its affinity, cut to the v2 control group's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, -(-int(quota) // int(period))))


def set_num_threads(count: int | None = None) -> int:
    """Let torch's CPU operations use ``count`` threads, all our cores by default; return it."""
    count = count or num_cores()
    torch.set_num_threads(count)
    return count


def _memory_cgroups(proc: Path, cgroup: Path) -> list[tuple[Path, str, str]]:
    """Return (folder, limit's file, usage's file) of our control group and those around it."""
    found = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = cgroup, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root = cgroup / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # In a container the path may be the host's, while what we see starts at our own group.
        inner = root / path.lstrip("/")
        while inner != root and root in inner.parents:
            found.append((inner, *names))
            inner = inner.parent
        found.append((root, *names))
    return found


def _page_cache(folder: Path) -> int:
    """Return the bytes of a control group that are file pages and can be dropped."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split(" ", 1) for line in lines if " " in line)
    prefix = "total_" if "total_inactive_file" in stat else ""
    return sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
