"""Log probabilities: of options, of prompts, of what was generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from engine_harness import Runtime, brute_force_logprobs

from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.wire import EngineFailed, Scored

OPTIONS = [[5], [5, 6], [5, 6, 7], [9, 10, 11, 12, 13], [9, 10, 14], [9, 10, 14], [20]]


def expected(model: CausalLM, prefix: Sequence[int], options: Sequence[Sequence[int]]) -> Any:
    found = []
    for option in options:
        logprobs = brute_force_logprobs(model, [*prefix, *option])
        found.append([logprobs[len(prefix) - 1 + i, token] for i, token in enumerate(option)])
    return found


def assert_close(found: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]]) -> None:
    assert [len(row) for row in found] == [len(row) for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(row, other, atol=2e-4)


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_options_score_as_one_forward_each_would(
    model: CausalLM, page_size: int, reuse: bool, overlap: int
) -> None:
    prompt = np.random.default_rng(0).integers(3, 128, 37).tolist()
    runtime = Runtime(model, page_size=page_size, reuse=reuse, overlap=overlap)
    call = runtime.score(prompt, OPTIONS, unconditional=[1])
    runtime.finish()
    end = runtime.end(call)
    assert isinstance(end, Scored)
    assert_close(end.logprobs, expected(model, prompt, OPTIONS))
    assert_close(end.unconditional, expected(model, [1], OPTIONS))


def test_each_shared_token_of_the_options_is_computed_once(model: CausalLM) -> None:
    prompt = np.random.default_rng(1).integers(3, 128, 37).tolist()
    runtime = Runtime(model)
    call = runtime.score(prompt, OPTIONS)
    runtime.finish()
    # Prompt, and every option token that another one follows: 5 6 | 9 10 | 11 12.
    assert runtime.metrics.forward_tokens == 37 + 6
    usage = runtime.end(call).usage
    assert (usage.prompt, usage.cached, usage.computed, usage.completion) == (37, 0, 37, 6)
    stats = runtime.loop.stats()
    assert (stats["prompt_tokens"], stats["computed_tokens"]) == (37, 37)
    assert stats["calls_by_end"] == {"scored": 1}


def test_a_selection_reuses_its_branch_and_leaves_it_to_the_next_call(model: CausalLM) -> None:
    prompt = np.random.default_rng(2).integers(3, 128, 30).tolist()
    runtime = Runtime(model)
    runtime.generate(prompt, branch=1, max_tokens=1)
    call = runtime.score(prompt, [[4, 5], [4, 6]], branch=1)
    runtime.finish()
    assert runtime.end(call).usage.cached == 29
    after = runtime.run([*prompt, 4, 6], branch=1)
    runtime.finish()
    assert runtime.end(after).usage.cached == 31


def test_a_thousand_options_over_a_long_prompt(model: CausalLM) -> None:
    rng = np.random.default_rng(3)
    prompt = rng.integers(3, 128, 100).tolist()
    options = [rng.integers(3, 128, rng.integers(1, 4)).tolist() for _ in range(1000)]
    runtime = Runtime(model, page_size=16, max_running=64, max_step_tokens=256)
    call = runtime.score(prompt, options)
    for _ in range(2000):
        if not runtime.loop.step() and not len(runtime.calls):
            break
    runtime.kv.check()
    inner = {tuple(o[:i]) for o in options for i in range(1, len(o))}
    assert runtime.metrics.forward_tokens == 100 + len(inner)
    end = runtime.end(call)
    some = [0, 17, 500, 999]
    wanted = expected(model, prompt, [options[i] for i in some])
    assert_close([end.logprobs[i] for i in some], wanted)


def test_scores_survive_little_memory(model: CausalLM) -> None:
    prompt = np.random.default_rng(4).integers(3, 128, 37).tolist()
    runtime = Runtime(model, num_pages=14, max_running=4)
    runtime.run(prompt[:5], max_tokens=30)
    call = runtime.score(prompt, OPTIONS)
    runtime.finish()
    assert_close(runtime.end(call).logprobs, expected(model, prompt, OPTIONS))


@pytest.mark.parametrize("start", [0, 1, 5, 20, 32])
@pytest.mark.parametrize("budget", [8, 64])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_prompt_logprobs_from_any_position_chunked_or_cached(
    model: CausalLM, start: int, budget: int, max_tokens: int
) -> None:
    prompt = np.random.default_rng(5).integers(3, 128, 33).tolist()
    runtime = Runtime(model, max_step_tokens=budget, max_running=4, max_logits_rows=6)
    runtime.generate(prompt, max_tokens=2)
    call = runtime.run(
        prompt,
        max_tokens=max_tokens,
        prompt_logprobs_from=start,
        logprobs=True,
        top_logprobs_num=3,
    )
    runtime.finish()
    entries = runtime.end(call).prompt_logprobs
    logprobs = brute_force_logprobs(model, prompt)
    assert len(entries) == len(prompt) - start
    for position, entry in enumerate(entries, start):
        if position == 0:
            assert entry.logprob is None
            continue
        row = logprobs[position - 1]
        assert entry.logprob == pytest.approx(row[prompt[position]], abs=2e-4)
        assert entry.top_ids == tuple(np.argsort(-row)[:3])
        np.testing.assert_allclose(entry.top_logprobs, np.sort(row)[::-1][:3], atol=2e-4)


def test_prompt_logprobs_are_collected_once_however_often_a_call_is_retracted(
    model: CausalLM,
) -> None:
    asked = [np.random.default_rng(i).integers(3, 128, 30).tolist() for i in range(4)]
    runtime = Runtime(model, num_pages=40, max_step_tokens=20)
    runtime.scheduler.admission.min_share = runtime.scheduler.admission.growth_share = 0.0
    calls = [runtime.run(p, max_tokens=50, prompt_logprobs_from=0) for p in asked]
    runtime.finish()
    assert runtime.metrics.retractions > 0
    for call, prompt in zip(calls, asked, strict=True):
        logprobs = brute_force_logprobs(model, prompt)
        entries = runtime.end(call).prompt_logprobs
        assert len(entries) == 30
        for position, entry in enumerate(entries[1:], 1):
            wanted = logprobs[position - 1, prompt[position]]
            assert entry.logprob == pytest.approx(wanted, abs=2e-4)


def test_logprobs_are_of_the_unmodified_distribution(model: CausalLM) -> None:
    prompt = np.random.default_rng(6).integers(3, 128, 9).tolist()
    runtime = Runtime(model)
    call = runtime.run(
        prompt,
        temperature=0.5,
        top_k=5,
        seed=3,
        logit_bias=((7, 100.0),),
        logprobs=True,
        top_logprobs_num=2,
        max_tokens=4,
    )
    other = runtime.run(prompt, max_tokens=4)
    runtime.finish()
    assert runtime.tokens(call) == [7] * 4
    for i, sampled in enumerate(runtime.sampled(call)):
        row = brute_force_logprobs(model, prompt + [7] * i)[-1]
        (entry,) = sampled.logprobs
        assert entry.logprob == pytest.approx(row[7], abs=2e-4)
        assert entry.top_ids == tuple(np.argsort(-row)[:2])
    assert all(not sampled.logprobs for sampled in runtime.sampled(other))


@pytest.mark.parametrize(
    ("prompt", "options", "unconditional"),
    [([], [[1]], []), ([1], [], []), ([1], [[]], []), ([1], [[500]], []), ([1], [[1]], [500])],
)
def test_options_that_cannot_be_scored_are_refused(
    model: CausalLM, prompt: list[int], options: list[list[int]], unconditional: list[int]
) -> None:
    runtime = Runtime(model)
    call = runtime.score(prompt, options, unconditional=unconditional)
    runtime.finish()
    end = runtime.end(call)
    assert isinstance(end, EngineFailed)
    assert end.code == "bad_request"
