"""The host's memory and cores within control groups."""

from __future__ import annotations

from pathlib import Path

from radixrt.runtime.host import MemoryInfo, host_memory, num_cores

MEMINFO = "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    800 kB\n"
KIB = 1024


def proc(root: Path, cgroup_lines: str) -> Path:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(MEMINFO)
    (root / "proc" / "self" / "cgroup").write_text(cgroup_lines)
    return root / "proc"


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("memory_", "memory.", 1)).write_text(f"{value}\n")


def test_without_limits_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    group(root / "a", memory_max="max", memory_current=100 * KIB)
    found = host_memory(proc(tmp_path, "0::/a\n"), root)
    assert found == MemoryInfo(1000 * KIB, 800 * KIB)


def test_the_tightest_v2_group_counts_and_page_cache_is_available(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    group(root / "a", memory_max=300 * KIB, memory_current=250 * KIB)
    (root / "a" / "memory.stat").write_text(
        f"anon 1\ninactive_file {20 * KIB}\nactive_file {10 * KIB}\n"
    )
    group(root / "a" / "b", memory_max=500 * KIB, memory_current=200 * KIB)
    found = host_memory(proc(tmp_path, "0::/a/b\n"), root)
    assert found == MemoryInfo(300 * KIB, 80 * KIB)


def test_v1_groups_count_also_where_the_path_is_the_hosts(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    names = {"memory_limit_in_bytes": 400 * KIB, "memory_usage_in_bytes": 100 * KIB}
    group(root / "memory", **names)
    lines = "4:memory:/docker/not-visible-here\n1:cpu:/\n0::/\n"
    found = host_memory(proc(tmp_path, lines), root)
    assert found == MemoryInfo(400 * KIB, 300 * KIB)


def test_a_cpu_quota_limits_the_cores(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert num_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert num_cores(tmp_path) == num_cores(tmp_path / "absent") >= 1
