"""Who may import whom, read from the sources: the architecture as a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import radixrt

ROOT = Path(radixrt.__file__).parent

FORBIDDEN = {
    "lang": {
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
        "radixrt.cache",
        "radixrt.runtime",
        "radixrt.gateway",
    },
    "gateway": {
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
        "radixrt.runtime",
        "radixrt.cache",
        "radixrt.lang",
        "radixrt.cli",
    },
    "integrations": {"torch", "radixrt.runtime", "radixrt.cache", "radixrt.gateway"},
    "runtime": {"radixrt.lang", "radixrt.gateway", "transformers"},
    "cache": {"torch", "radixrt.runtime", "radixrt.lang", "radixrt.gateway"},
}
"""Folder → modules it never imports."""

RUNTIME_FOLDERS = (
    *("", "ops", "attention", "grammar", "model", "scheduling", "transfer", "forward", "engine"),
    *("frontend", "serving"),
)
"""The runtime's folders, "" its own files: each imports only those before it."""

RUNTIME_ROOTS = {"__main__", "local"}
"""Files that put the runtime together: they import what they like."""

ADAPTERS = {
    "flashinfer": "flashinfer",
    "triton": "triton",
    "sgl_kernel": "sgl",
    "pydantic": "pydantic",
    "lm_eval": "lm",
    "httpx": "http",
    "opentelemetry": "otel",
}
"""Optional package → what the name of a file that imports it begins with."""

CLIENT_NEVER_LOADS = (
    *("torch", "transformers", "tokenizers", "fastapi"),
    *("radixrt.runtime", "radixrt.cache", "pydantic", "rich", "httpx"),
)

FORBIDDEN_CALLS = {"eval", "exec", "pickle", "marshal", "dill", "cloudpickle"}


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Yield every module that the file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("folder", sorted(FORBIDDEN))
def test_a_layer_never_imports_what_is_above_or_beside_it(folder: str) -> None:
    offences = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources()
        if path.relative_to(ROOT).parts[0] == folder
        for module in imports(path)
        if any(within(module, banned) for banned in FORBIDDEN[folder])
    ]
    assert not offences


def test_the_runtime_s_folders_build_on_each_other_in_one_direction() -> None:
    root = ROOT / "runtime"

    def place(parts: tuple[str, ...]) -> int:
        return RUNTIME_FOLDERS.index(parts[0] if (root / parts[0]).is_dir() else "")

    offences = [
        f"{path.relative_to(root)} imports {module}"
        for path in sorted(root.rglob("*.py"))
        if path.stem not in RUNTIME_ROOTS
        for module in imports(path)
        if module.startswith("radixrt.runtime.")
        if place(tuple(module.split(".")[2:])) > place(path.relative_to(root).parts)
    ]
    assert not offences


def test_an_optional_package_is_imported_in_its_adapter_file_alone() -> None:
    offences = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources()
        for module in imports(path)
        for package, stem in ADAPTERS.items()
        if within(module, package) and path.stem.split("_")[0] != stem
    ]
    assert not offences


def test_cuda_is_named_in_the_device_file_and_the_adapters_alone() -> None:
    allowed = {"device", *ADAPTERS.values()}
    offences = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        if path.stem.split("_")[0] not in allowed
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr == "cuda"
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
    ]
    assert not offences


def test_nothing_received_can_become_code() -> None:
    offences = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if called and node.func.id in {"eval", "exec"}:
                offences.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {node.func.id}")
        offences += [
            f"{path.relative_to(ROOT)} imports {module}"
            for module in imports(path)
            if module.split(".")[0] in FORBIDDEN_CALLS
        ]
    assert not offences


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import radixrt", CLIENT_NEVER_LOADS),
        ("import radixrt.lang", CLIENT_NEVER_LOADS),
        ("import radixrt.cli", CLIENT_NEVER_LOADS),
        ("import radixrt.doctor.command, radixrt.doctor.facts", CLIENT_NEVER_LOADS),
        ("import radixrt.bench.command", ("torch", "transformers")),
        ("import radixrt.runtime.serving.server", ("torch", "transformers")),
        ("import radixrt.runtime.local", ("torch", "transformers")),
    ],
)
def test_neither_the_client_nor_the_frontend_loads_heavy_packages(
    statement: str, heavy: tuple[str, ...]
) -> None:
    code = f"{statement}; import sys; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "[]"
