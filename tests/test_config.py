"""Options of the runtime: derived values and refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from radixrt.config import DEFAULT_MODEL, RuntimeConfig, parse_memory
from radixrt.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", None),
        ("50%", 500),
        ("100 %", 1000),
        ("4GiB", 4 << 30),
        ("1.5 mib", 3 << 19),
        ("2GB", 2 * 10**9),
        ("4096", 4096),
    ],
)
def test_memory_sizes_and_shares(text: str, expected: int | None) -> None:
    assert parse_memory(text, total_bytes=1000) == expected


@pytest.mark.parametrize("text", ["", "0%", "101%", "-1GiB", "x", "4 GiBs", "%", "nan%", "inf"])
def test_other_memory_is_refused_with_the_forms_that_work(text: str) -> None:
    with pytest.raises(ConfigError, match="80%"):
        RuntimeConfig(memory=text).resolve()


def test_an_unknown_option_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"max_runing.*max_running"):
        RuntimeConfig.of(max_runing=3)


@pytest.mark.parametrize(
    "options",
    [
        {"page_size": 0},
        {"max_running": -1},
        {"max_running": 600, "max_step_tokens": 512},
        {"overlap": 2},
        {"context_length": -1},
        {"drain_s": -1.0},
    ],
)
def test_values_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        RuntimeConfig(**options).resolve()


def test_resolve_derives_a_new_config_for_the_device() -> None:
    config = RuntimeConfig()
    cpu = config.resolve(device="cpu")
    assert (cpu.device, cpu.max_step_tokens, cpu.overlap) == ("cpu", 512, 0)
    cuda = config.resolve(device="cuda:0", memory_bytes=80 << 30)
    assert (cuda.device, cuda.max_step_tokens, cuda.overlap) == ("cuda:0", 8192, 1)
    assert (cpu.max_running, cuda.max_running) == (256, 2048)
    assert cuda.mixed_step_tokens < cuda.max_step_tokens
    assert cpu.model == DEFAULT_MODEL
    assert config == RuntimeConfig()
    assert config.resolve().device == "auto"
    many = RuntimeConfig(max_running=1000).resolve(device="cpu")
    assert many.max_step_tokens >= 1000 + many.page_size


def test_every_option_has_a_docstring() -> None:
    source = Path(__import__("radixrt.config").config.__file__).read_text(encoding="utf-8")
    for field in dataclasses.fields(RuntimeConfig):
        line = next(
            i for i, text in enumerate(source.splitlines()) if text.startswith(f"    {field.name}:")
        )
        assert source.splitlines()[line + 1].startswith('    """')
