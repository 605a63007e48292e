"""What there is on this machine, gathered without loading any of it into this process.

The standard library is enough for it: what is examined may be what is missing.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from radixrt.doctor.requirement import Requirement

MODULES = {
    "triton": "triton",
    "flashinfer-python": "flashinfer",
    "sglang-kernel": "sgl_kernel",
    "llguidance": "llguidance",
    "tokenizers": "tokenizers",
    "pyzmq": "zmq",
    "safetensors": "safetensors",
    "numpy": "numpy",
}
"""Distribution → the module that is imported to see whether it loads."""

IMPORT_LIMIT_S = 120.0
"""How long one import may take."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """What torch says. ``cuda`` and ``hip``: the version it was built for, else empty."""

    version: str
    cuda: str = ""
    hip: str = ""
    architectures: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is written to. ``variable``: the environment's that moves it; ``num_files``:
    those in it that are compiled kernels."""

    path: str
    variable: str
    is_writable: bool
    free_bytes: int
    num_files: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that ``checks`` judges.

    ``versions``: distribution → installed version, for every requirement that is installed.
    ``import_errors``: distribution → why it does not load. ``driver_cuda``: the newest CUDA that
    the NVIDIA driver runs; None without a driver. ``tools``: program → where it is.
    """

    python: tuple[int, int, int]
    python_path: str
    requires_python: str
    requirements: tuple[Requirement, ...]
    versions: dict[str, str]
    import_errors: dict[str, str]
    torch: TorchFacts | None
    torch_error: str = ""
    driver_cuda: tuple[int, int] | None = None
    cpu_features: tuple[str, ...] = ()
    native_error: str = ""
    tools: dict[str, str]
    folders: dict[str, Folder]


def gather() -> Facts:
    """Return the facts of this machine; takes the seconds that its packages take to load."""
    requires_python, lines = _own_metadata()
    requirements = tuple(Requirement.parse(line) for line in lines)
    versions = {}
    for name in {requirement.name for requirement in requirements}:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    native = "import json, radixrt._native as n; print(json.dumps(n.cpu_features()))"
    with ThreadPoolExecutor(max_workers=4) as pool:
        torch_run = pool.submit(_run, ["-m", "radixrt.doctor.device"])
        native_run = pool.submit(_run, ["-c", f"import torch; {native}"])
        runs = {
            name: pool.submit(_run, ["-c", f"import {module}"])
            for name, module in MODULES.items()
            if name in versions
        }
        errors = {name: run.result()[1] for name, run in runs.items() if run.result()[1]}
    torch_output, torch_error = torch_run.result()
    native_output, native_error = native_run.result()
    return Facts(
        python=sys.version_info[:3],
        python_path=sys.executable,
        requires_python=requires_python,
        requirements=requirements,
        versions=versions,
        import_errors=errors,
        torch=None if torch_error else _torch_facts(json.loads(torch_output)),
        torch_error=torch_error,
        driver_cuda=_driver_cuda(),
        cpu_features=() if native_error else tuple(json.loads(native_output)),
        native_error=native_error,
        tools={name: path for name in ("nvcc", "ninja") if (path := _find_tool(name))},
        folders=_folders(),
    )


def _torch_facts(told: dict[str, Any]) -> TorchFacts:
    gpus = [
        Gpu(gpu["name"], tuple(gpu["capability"]), gpu["total_bytes"], gpu["free_bytes"])
        for gpu in told["gpus"]
    ]
    return TorchFacts(
        version=told["version"],
        cuda=told["cuda"],
        hip=told["hip"],
        architectures=tuple(told["architectures"]),
        gpus=tuple(gpus),
        error=told["error"],
    )


def _own_metadata() -> tuple[str, list[str]]:
    """Return the Pythons and the packages we need, as installed or as in a source tree."""
    try:
        own = metadata.metadata("radixrt")
        return own["Requires-Python"] or "", metadata.requires("radixrt") or []
    except metadata.PackageNotFoundError:
        file = Path(__file__).parents[2] / "pyproject.toml"
        project: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        lines = list(project["dependencies"])
        for extra, names in project["optional-dependencies"].items():
            lines += [f'{name}; extra == "{extra}"' for name in names]
        return project["requires-python"], lines


def _run(arguments: Sequence[str]) -> tuple[str, str]:
    """Run this Python; return (the last line it printed, why it failed or "")."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=IMPORT_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", f"it did not load within {IMPORT_LIMIT_S:g} s"
    if done.returncode == 0:
        return (done.stdout.strip().splitlines() or [""])[-1], ""
    told = done.stderr.strip().splitlines()
    return "", told[-1] if told else f"loading it ended the process (exit code {done.returncode})"


def _driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA version that the NVIDIA driver runs."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        version = ctypes.c_int()
        if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def _find_tool(name: str) -> str:
    """Return where a program is: on PATH, beside Python, or in the CUDA toolkit."""
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    places = [os.environ.get("PATH", ""), str(Path(sys.executable).parent), f"{toolkit}/bin"]
    return shutil.which(name, path=os.pathsep.join(places)) or ""


def _folders() -> dict[str, Folder]:
    home = Path.home()
    triton = Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    base = Path(os.environ.get("FLASHINFER_WORKSPACE_BASE") or home)
    return {
        "temporary": _folder(Path(tempfile.gettempdir()), "TMPDIR", ""),
        "triton": _folder(triton, "TRITON_CACHE_DIR", "*.cubin"),
        "flashinfer": _folder(base / ".cache" / "flashinfer", "FLASHINFER_WORKSPACE_BASE", "*.so"),
    }


def _folder(path: Path, variable: str, pattern: str) -> Folder:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return Folder(
        path=str(path),
        variable=variable,
        is_writable=os.access(existing, os.W_OK | os.X_OK),
        free_bytes=shutil.disk_usage(existing).free,
        num_files=sum(1 for _ in path.rglob(pattern)) if pattern and path.is_dir() else 0,
    )
