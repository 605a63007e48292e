"""Small editions of ``benchmarks/fuzz.py``, with the fake engine."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from runtime_process import ROOT, RuntimeProcess, serving


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runtime(
    model_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RuntimeProcess]:
    directory = tmp_path_factory.mktemp("robustness")
    with serving(model_directory, directory, engine=["--step-s", "0.001"]) as process:
        process.await_ready()
        yield process


def test_hostile_frames_change_nothing_for_others(
    runtime: RuntimeProcess, fuzz: ModuleType
) -> None:
    quiet = fuzz.good_clients(runtime.endpoint, 4)
    assert not any("FAILED" in output for outputs in quiet for output in outputs)
    noise = threading.Thread(target=fuzz.send_hostile_frames, args=(runtime.endpoint, 400, 1))
    noise.start()
    noisy = fuzz.good_clients(runtime.endpoint, 4)
    noise.join()
    assert noisy == quiet
    assert fuzz.settled(runtime.endpoint) == {}


def test_clients_killed_mid_stream_leave_nothing(runtime: RuntimeProcess, fuzz: ModuleType) -> None:
    fuzz.killed_clients(runtime.endpoint, 10)
    assert fuzz.settled(runtime.endpoint) == {}
