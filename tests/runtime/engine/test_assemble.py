"""From a model directory to a loop that serves: memory, limits, what is announced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_harness import ScriptedChannel, params
from tiny_models import save_tiny

from radixrt.config import RuntimeConfig
from radixrt.errors import ConfigError
from radixrt.runtime.engine.assemble import build_loop
from radixrt.runtime.engine.memory import bytes_per_page, plan_memory
from radixrt.runtime.host import MemoryInfo
from radixrt.runtime.model.config import ModelConfig, read_config
from radixrt.runtime.wire import Done, Progress, Ready, Run, Shutdown, pack_ids


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def test_a_built_loop_announces_itself_and_serves(path: Path) -> None:
    channel = ScriptedChannel()
    config = RuntimeConfig(model=path, device="cpu", memory="64MiB", max_running=8)
    loop = build_loop(config, channel)
    *phases, ready = channel.sent
    assert [p.phase for p in phases if isinstance(p, Progress)] == ["weights", "profile", "memory"]
    assert isinstance(ready, Ready)
    assert ready.vocab_size == 128
    assert ready.max_context == 512
    assert ready.info["kv_tokens"] == loop.scheduler.kv.num_usable * 16
    channel.inbox = [
        Run(1, 1, pack_ids(np.arange(3, 50, dtype=np.int32)), params()),
        Shutdown(30.0),
    ]
    loop.run()
    (done,) = [message for message in channel.sent if isinstance(message, Done)]
    assert done.usage.completion == 8


def test_the_whole_of_a_context_fits_after_ready(path: Path) -> None:
    channel = ScriptedChannel()
    config = RuntimeConfig(model=path, device="cpu", max_running=2, context_length=200)
    loop = build_loop(config, channel)
    prompt = pack_ids(np.arange(3, 103, dtype=np.int32))
    channel.inbox = [Run(i, i, prompt, params(max_tokens=100)) for i in range(3)]
    channel.inbox.append(Shutdown(60.0))
    loop.run()
    assert [m.reason for m in channel.sent if isinstance(m, Done)] == ["length"] * 3


def test_a_context_beyond_the_models_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"513.*512"):
        build_loop(RuntimeConfig(model=path, device="cpu", context_length=513), ScriptedChannel())


def plan(path: Path, memory: str, **options: int) -> tuple[ModelConfig, object]:
    model = read_config(path)
    config = RuntimeConfig(model=path, memory=memory, context_length=512).resolve(device="cpu")
    return model, plan_memory(
        config,
        model,
        dtype=torch.float32,
        is_gpu=False,
        before=MemoryInfo(total=2 << 30, available=1 << 30),
        weights=options.get("weights", 10 << 20),
        step=options.get("step", 20 << 20),
    )


def test_kv_is_what_weights_and_the_worst_step_leave(path: Path) -> None:
    model = read_config(path)
    page = bytes_per_page(model, 16, torch.float32)
    assert page == 2 * 3 * 2 * 16 * 4 * 16
    for memory, budget in (("64MiB", 64 << 20), ("50%", 1 << 29)):
        _, planned = plan(path, memory)
        assert planned.num_pages == (budget - (30 << 20)) // page  # type: ignore[attr-defined]
        assert planned.kv == planned.num_pages * page  # type: ignore[attr-defined]


def test_auto_on_a_cpu_takes_no_more_than_all_requests_can_use(path: Path) -> None:
    model, planned = plan(path, "auto")
    page = bytes_per_page(model, 16, torch.float32)
    assert planned.num_pages == 256 * 512 // 16 + 1  # type: ignore[attr-defined]
    assert planned.kv == planned.num_pages * page < 1 << 28  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("memory", "options"), [("30MiB", {}), ("2GiB", {}), ("10%", {"weights": 200 << 20})]
)
def test_a_budget_that_leaves_nothing_is_refused_with_numbers(
    path: Path, memory: str, options: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match=r"weights take .* largest step 20 MiB.*max_step_tokens"):
        plan(path, memory, **options)
