"""The host: what memory and how many cores this process may use, by its control groups."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Bytes of a device's memory: what there is, and what can still be allocated."""

    total: int
    available: int


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


def resident_memory() -> int:
    """Return the bytes that this process has resident now."""
    pages = int((PROC / "self" / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


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
