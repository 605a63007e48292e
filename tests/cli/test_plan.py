"""``radixrt plan``: what it foresees is what a runtime plans, and its advice works."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from radixrt import cli
from radixrt.config import DEFAULT_MODEL, RuntimeConfig
from radixrt.runtime.channel import LocalEngineChannel
from radixrt.runtime.engine.assemble import build_loop
from radixrt.runtime.engine.forecast import forecast, machine_here, machine_with, step_bytes
from radixrt.runtime.model.config import read_config
from radixrt.runtime.wire import FromEngine, Ready


@pytest.fixture(autouse=True)
def _without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RADIXRT_")]:
        monkeypatch.delenv(name)


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", *arguments])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = plan(capsys, *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_what_is_foreseen_is_what_a_runtime_plans() -> None:
    config = RuntimeConfig(memory="256MiB", host_memory="64MiB", max_running=32)
    sent: list[FromEngine] = []
    loop = build_loop(config, LocalEngineChannel(sent.extend))
    loop.close()
    (ready,) = (message for message in sent if isinstance(message, Ready))
    real = ready.info["memory_plan"]
    found = forecast(config, read_config(DEFAULT_MODEL), machine_here(config))
    assert found.memory.budget == real["budget"]
    assert found.memory.weights == real["weights"]
    assert found.page_bytes * real["num_pages"] == real["kv"]
    assert found.memory.kv_tokens == pytest.approx(ready.info["kv_tokens"], rel=0.25)
    # The host's pool has a page that belongs to nobody.
    assert found.host_tokens == pytest.approx(ready.info["tiers"]["host"], abs=16)
    assert found.config.max_running == ready.info["max_running"]


def test_a_step_takes_what_it_took_on_a_gpu() -> None:
    """benchmarks/results/2026-11-24-h200-bench.json: 14.17 GiB with 59 recorded graphs."""
    from radixrt.bench.models import SHAPES
    from radixrt.runtime.model.config import parse_config

    model = parse_config(SHAPES["llama-3.1-8b"])
    config = RuntimeConfig(memory="90%")
    found = forecast(config, model, machine_with(int(139.8 * 2**30), config))
    assert found.memory.step / 2**30 == pytest.approx(14.17, rel=0.1)
    assert found.memory.kv_tokens == pytest.approx(783_168, rel=0.02)
    without = step_bytes(
        dataclasses.replace(found.config, graphs=False), model, found.dtype, is_gpu=True
    )
    assert without < found.memory.step


def test_a_shape_is_planned_for_a_device_that_is_not_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = plan(capsys, "llama-3.1-8b", "--device-memory", "80GiB", "--device", "cuda")
    assert code == 0, err
    assert "14.96 GiB in bfloat16" in out
    assert "128 KiB a token" in out
    auto = next(line.split() for line in out.splitlines() if line.strip().startswith("auto"))
    assert auto[1:3] == ["72.00", "GiB"]
    more = planned(capsys, "llama-3.1-8b", "--device-memory", "160GiB", "--memory", "90%")
    (setting,) = more["settings"]
    assert setting["kv_tokens"] > int(auto[5].replace(",", ""))


def test_requests_are_bounded_by_memory_and_by_the_batch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--memory", "128MiB", "--max-running", "8", "--context", "2048", "--context", "16"]
    (setting,) = planned(capsys, *arguments)["settings"]
    assert setting["requests"] == {"2048": min(8, setting["kv_tokens"] // 2048), "16": 8}


@pytest.mark.parametrize("size", ["17500MiB", "18GiB"])
def test_the_way_out_of_what_does_not_fit_works(
    capsys: pytest.CaptureFixture[str], size: str
) -> None:
    arguments = [
        "llama-3.1-8b",
        "--device-memory",
        size,
        "--memory",
        "100%",
        "--max-running",
        "4096",
    ]
    code, out, err = plan(capsys, *arguments)
    assert code == 1
    assert not err
    assert "It does not fit: memory=100%" in out
    flags = out.splitlines()[-1].removeprefix("It fits with: ").split()
    code, out, _ = plan(capsys, *arguments, *flags)
    assert code == 0, out


def test_a_model_that_is_too_large_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, "llama-3.1-8b", "--device-memory", "8GiB")
    assert code == 1
    assert "weights take 14.96 GiB" in out
    assert "a smaller model" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lama-3.1-8b"], "did you mean llama-3.1-8b"),
        (["--device-memory", "much"], "use a size"),
        (["--device-memory", "0"], "80GiB"),
        (["--context", "4000"], "longest is 2048"),
        (["--context-length", "9999"], "2048 positions"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str, tmp_path: Path
) -> None:
    code, out, err = plan(capsys, *arguments)
    assert code == 1
    assert said in out + err
    assert "Traceback" not in err
