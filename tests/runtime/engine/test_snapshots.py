"""What is saved to a directory is found after it was restored, wherever it was before."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_harness import Runtime

from radixrt.cache.records import Layout
from radixrt.runtime.engine.snapshots import Snapshots
from radixrt.runtime.engine.tiers import tiers_of
from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.wire import EngineFailed, EngineReply, RestoreCache, SaveCache

PROMPTS = [list(range(3, 60)), [*range(3, 30), *range(60, 100)], list(range(100, 40, -1))]


def runtime_with_snapshots(
    model: CausalLM, *, layout: bytes = b"a" * 16, **options: Any
) -> Runtime:
    runtime = Runtime(model, **options)
    page_bytes = 2 * runtime.engine.pool.k[:, 0].nbytes
    runtime.loop.snapshots = Snapshots(
        lambda: tiers_of(runtime.kv, runtime.engine, runtime.engine.pool),
        Layout(4, page_bytes, layout),
    )
    return runtime


def answer(runtime: Runtime, message: SaveCache | RestoreCache) -> EngineReply | EngineFailed:
    """Step until the question is answered."""
    runtime.put(message)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        runtime.step()
        for sent in runtime.channel.sent:
            if isinstance(sent, EngineReply | EngineFailed) and sent.id == message.id:
                return sent
    raise AssertionError("no answer")


def ask(runtime: Runtime, prompt: list[int]) -> tuple[list[int], int]:
    call = runtime.run(prompt)
    end = time.monotonic() + 20
    runtime.step()
    while len(runtime.calls):
        assert time.monotonic() < end, "a call hangs"
        runtime.step()
    return runtime.tokens(call), runtime.end(call).usage.cached


@pytest.mark.parametrize(
    ("host_pages", "where"), [(0, "device"), (30, "device"), (200, "device"), (200, "host")]
)
def test_everything_saved_is_found(
    model: CausalLM, tmp_path: Path, host_pages: int, where: str
) -> None:
    first = runtime_with_snapshots(model, host_pages=host_pages)
    expected = [ask(first, prompt)[0] for prompt in PROMPTS]
    if where == "host":
        assert first.tiers is not None
        assert first.tiers.fence(10)
        first.cache.clear()
    saved = answer(first, SaveCache(900, str(tmp_path / "saved")))
    assert isinstance(saved, EngineReply)
    # The three prompts share a prefix; the last token of an answer is never computed.
    assert saved.data["pages"] == len(
        {tuple((p + e)[: 4 * i]) for p, e in zip(PROMPTS, expected, strict=True)
         for i in range(1, (len(p) + 7) // 4 + 1)}
    )  # fmt: skip
    first.kv.check()
    second = runtime_with_snapshots(model, host_pages=host_pages)
    restored = answer(second, RestoreCache(901, str(tmp_path / "saved")))
    assert restored == EngineReply(901, saved.data)
    assert second.kv.tiers is not None
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        # A small host has room for a prompt once the copies of the one before have ended.
        assert second.kv.tiers.fence(10)
        assert ask(second, prompt) == (tokens, (len(prompt) - 1) // 4 * 4)
    second.kv.check()


def test_saving_goes_on_beside_calls(model: CausalLM, tmp_path: Path) -> None:
    runtime = runtime_with_snapshots(model, host_pages=100, num_pages=80)
    expected = [ask(runtime, prompt)[0] for prompt in PROMPTS]
    calls = [runtime.run(prompt) for prompt in PROMPTS * 3]
    assert isinstance(answer(runtime, SaveCache(900, str(tmp_path / "saved"))), EngineReply)
    runtime.finish()
    assert [runtime.tokens(call) for call in calls] == expected * 3
    again = answer(runtime, SaveCache(901, str(tmp_path / "saved")))
    assert isinstance(again, EngineReply), "a snapshot can be brought up to date"


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (lambda folder: SaveCache(1, str(folder)), "no snapshot"),
        (lambda folder: SaveCache(1, "here"), "absolute"),
        (lambda folder: RestoreCache(1, str(folder)), "no snapshot"),
        (lambda folder: RestoreCache(1, str(folder / "nowhere")), "no snapshot"),
    ],
)
def test_other_directories_are_refused_untouched(
    model: CausalLM,
    tmp_path: Path,
    message: Callable[[Path], SaveCache | RestoreCache],
    says: str,
) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    runtime = runtime_with_snapshots(model)
    failed = answer(runtime, message(tmp_path))
    assert isinstance(failed, EngineFailed)
    assert says in failed.message
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_snapshot_of_another_form_restores_nothing(model: CausalLM, tmp_path: Path) -> None:
    first = runtime_with_snapshots(model)
    expected, _ = ask(first, PROMPTS[0])
    answer(first, SaveCache(900, str(tmp_path / "saved")))
    second = runtime_with_snapshots(model, layout=b"b" * 16)
    restored = answer(second, RestoreCache(901, str(tmp_path / "saved")))
    assert restored == EngineReply(901, {"pages": 0})
    assert ask(second, PROMPTS[0]) == (expected, 0)
