"""What the demo measures, and when it complains."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import radixrt as rt

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return importlib.import_module(name)


@given(st.lists(st.lists(st.integers(0, 2), max_size=6)))
def test_distinct_prefix_tokens_are_the_nodes_of_the_trie(prompts: list[list[int]]) -> None:
    nodes = {tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)}
    assert load("measure").num_distinct_prefix_tokens(prompts) == len(nodes)


def test_a_server_of_the_demo_computes_each_shared_token_once_and_ends_with_its_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    demo, measure, few_shot = load("demo"), load("measure"), load("few_shot")
    processes = []
    start = demo.subprocess.Popen

    def remembered(*args: Any, **options: Any) -> Any:
        processes.append(start(*args, **options))
        return processes[-1]

    monkeypatch.setattr(demo.subprocess, "Popen", remembered)
    batch = few_shot.rows(12, 20)
    prompts = measure.token_ids(row["shots"] + row["question"] for row in batch)

    def interrupted() -> None:
        with demo.serving() as backend:
            assert isinstance(backend, rt.RuntimeEndpoint)
            measured = measure.measure(backend, lambda: few_shot.evaluate(backend, batch))
            assert measured.asked_tokens == sum(map(len, prompts))
            assert measured.asked_tokens == measured.cached_tokens + measured.computed_tokens
            num_distinct = measure.num_distinct_prefix_tokens(prompts)
            assert num_distinct <= measured.computed_tokens <= 1.02 * num_distinct
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    [process] = processes
    assert process.returncode is not None


def good_results() -> list[Any]:
    demo, measured = load("demo"), load("measure").Measured
    cold = measured(0.98, 100, 1.0, 100_000, 95_000, 5_000)
    warm = dataclasses.replace(cold, computed_tokens=100)
    off = dataclasses.replace(cold, seconds=10.0, cached_tokens=0, computed_tokens=100_000)
    return [demo.Results(cold, warm, off)] * 3


def test_the_demo_has_nothing_to_say_of_good_results() -> None:
    assert load("demo").complaints(good_results(), 0.7, 5_000) == []


@pytest.mark.parametrize(
    ("program", "run", "change", "sentence"),
    [
        (0, "cold", {"accuracy": 0.94}, "few-shot accuracy"),
        (1, "cold", {"accuracy": 0.89}, "agent's accuracy"),
        (2, "cold", {"accuracy": 0.7}, "the vote"),
        (0, "cold", {"computed_tokens": 5_101}, "distinct prefix tokens"),
        (0, "warm", {"computed_tokens": 5_000}, "warm cache"),
        (0, "off", {"cached_tokens": 1}, "a cache that was off"),
        (0, "off", {"seconds": 1.9}, "times as fast"),
    ],
)
def test_the_demo_complains_of_poor_accuracy_reuse_and_speed(
    program: int, run: str, change: dict[str, float], sentence: str
) -> None:
    results = good_results()
    changed = dataclasses.replace(getattr(results[program], run), **change)
    results[program] = dataclasses.replace(results[program], **{run: changed})
    [complaint] = load("demo").complaints(results, 0.7, 5_000)
    assert sentence in complaint
