"""However a prompt is computed, its tokens are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from engine_harness import Runtime, brute_force_logprobs

from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.scheduling.plan import Plan


def prompts(seed: int, lengths: Sequence[int], shared: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    prefix = rng.integers(3, 128, shared).tolist()
    return [prefix + rng.integers(3, 128, n).tolist() for n in lengths]


def alone(model: CausalLM, token_ids: Sequence[int], **options: Any) -> list[int]:
    return Runtime(model, reuse=False, max_step_tokens=256).generate(token_ids, **options)


def test_greedy_tokens_are_those_of_a_plain_forward(model: CausalLM) -> None:
    (prompt,) = prompts(0, [21])
    tokens = Runtime(model).generate(prompt, max_tokens=12)
    for i, token in enumerate(tokens):
        assert brute_force_logprobs(model, prompt + tokens[:i])[-1].argmax() == token
    assert len(tokens) == 12


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cache_on_equals_cache_off(model: CausalLM, temperature: float, overlap: int) -> None:
    runtime = Runtime(model, overlap=overlap)
    for i, prompt in enumerate(prompts(1, [3, 9, 9, 17, 1, 30], shared=27) * 2):
        options: dict[str, Any] = {"temperature": temperature, "seed": i, "max_tokens": 9}
        assert runtime.generate(prompt, **options) == alone(model, prompt, **options)
    assert runtime.metrics.cached_tokens > 27 * 10


@pytest.mark.parametrize("budget", [8, 12, 40])
def test_chunked_equals_whole(model: CausalLM, budget: int) -> None:
    (prompt,) = prompts(2, [101])
    runtime = Runtime(model, max_step_tokens=budget, max_running=4)
    assert runtime.generate(prompt) == alone(model, prompt)
    assert runtime.metrics.steps >= 101 // budget + 8


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_batched_equals_alone(model: CausalLM, temperature: float, overlap: int) -> None:
    runtime = Runtime(model, overlap=overlap)
    asked = prompts(3, [5, 33, 1, 64, 12, 7, 8, 90, 2, 41, 16, 15])
    options = [
        {"temperature": temperature, "seed": 7 * i, "max_tokens": 4 + i} for i in range(len(asked))
    ]
    calls = [runtime.run(p, **o) for p, o in zip(asked, options, strict=True)]
    runtime.finish()
    for call, prompt, option in zip(calls, asked, options, strict=True):
        assert runtime.tokens(call) == alone(model, prompt, **option)


@pytest.mark.parametrize("overlap", [0, 1])
def test_many_questions_over_one_cold_prefix_compute_it_once(model: CausalLM, overlap: int) -> None:
    asked = prompts(4, [7 + i % 5 for i in range(24)], shared=150)
    runtime = Runtime(model, overlap=overlap)
    calls = [runtime.run(prompt) for prompt in asked]
    runtime.finish()
    computed = sum(runtime.end(call).usage.computed for call in calls)
    distinct = len({tuple(prompt[: i + 1]) for prompt in asked for i in range(len(prompt))})
    # But for the few tokens at the end of a chunk that are not worth waiting for.
    assert distinct <= computed <= distinct * 1.05
    for call, prompt in zip(calls[:5], asked[:5], strict=True):
        assert runtime.tokens(call) == alone(model, prompt)


def test_the_same_prompt_many_times_costs_one_prefill(model: CausalLM) -> None:
    (prompt,) = prompts(5, [122])
    runtime = Runtime(model, page_size=16)
    calls = [runtime.run(prompt, temperature=1.0, seed=i) for i in range(6)]
    runtime.finish()
    usages = [runtime.end(call).usage for call in calls]
    assert sorted(usage.computed for usage in usages) == [1, 1, 1, 1, 1, 122]
    assert len({tuple(runtime.tokens(call)) for call in calls}) > 1


def test_forked_equals_separate(model: CausalLM) -> None:
    (prompt,) = prompts(6, [50])
    runtime = Runtime(model, page_size=16)
    base = prompt + runtime.generate(prompt, branch=1)
    forks = [base + tail for tail in prompts(7, [3, 4, 5])]
    calls = [runtime.run(fork, branch=10 + i) for i, fork in enumerate(forks)]
    runtime.finish()
    for call, fork in zip(calls, forks, strict=True):
        assert runtime.tokens(call) == alone(model, fork)
        # All of the branch but the token sampled last, which nobody computed yet.
        assert runtime.end(call).usage.cached >= len(base) - 1


@pytest.mark.parametrize("lengths", [[30, 60, 90, 120, 150], [150, 120, 90, 60, 30]])
@pytest.mark.parametrize("max_step_tokens", [16, 40, 512])
def test_an_unlucky_order_of_arrival_computes_no_token_twice(
    model: CausalLM, lengths: list[int], max_step_tokens: int
) -> None:
    (whole,) = prompts(13, [150])
    rng = np.random.default_rng(14)
    runtime = Runtime(model, max_step_tokens=max_step_tokens, max_running=8)
    asked, calls = [], []
    for _ in range(3):  # the later ones arrive while the first are computed
        for length in lengths:
            asked.append([*whole[:length], *rng.integers(3, 128, 9).tolist()])
            calls.append(runtime.run(asked[-1], max_tokens=2))
        runtime.step()
    runtime.finish()
    computed = sum(runtime.end(call).usage.computed for call in calls)
    distinct = len({tuple(prompt[: i + 1]) for prompt in asked for i in range(len(prompt))})
    # But for the few tokens at the end of a chunk that are not worth waiting for.
    assert distinct <= computed <= distinct * 1.05


def test_a_step_is_filled_to_the_last_token(model: CausalLM) -> None:
    runtime = Runtime(model, page_size=16, max_step_tokens=40)
    for prompt in prompts(21, [90, 70]):
        runtime.run(prompt, max_tokens=1)
    sizes = []
    plan = runtime.loop.scheduler.schedule

    def schedule() -> Plan:
        made = plan()
        sizes.append(made.num_tokens)
        return made

    runtime.loop.scheduler.schedule = schedule  # type: ignore[method-assign]
    runtime.finish()
    assert [size for size in sizes if size] == [40, 40, 40, 40]


def test_retraction_without_a_cache_computes_all_again(model: CausalLM) -> None:
    asked = prompts(15, [20, 21, 22])
    runtime = Runtime(model, num_pages=40, reuse=False)
    runtime.scheduler.admission.min_share = runtime.scheduler.admission.growth_share = 0.0
    calls = [runtime.run(prompt, max_tokens=60) for prompt in asked]
    runtime.finish()
    assert runtime.metrics.retractions > 0
    assert runtime.metrics.recomputed_tokens > 20
    for call, prompt in zip(calls, asked, strict=True):
        assert runtime.tokens(call) == alone(model, prompt, max_tokens=60)


@pytest.mark.parametrize("overlap", [0, 1])
def test_retracted_equals_not_retracted(model: CausalLM, overlap: int) -> None:
    asked = prompts(8, [20, 21, 22, 23, 24, 25])
    options = [{"max_tokens": 60, "temperature": 0.7, "seed": i} for i in range(6)]
    runtime = Runtime(model, num_pages=80, overlap=overlap)
    runtime.scheduler.admission.min_share = 0.0
    runtime.scheduler.admission.growth_share = 0.0
    calls = [runtime.run(p, **o) for p, o in zip(asked, options, strict=True)]
    runtime.finish()
    assert runtime.metrics.retractions > 0
    for call, prompt, option in zip(calls, asked, options, strict=True):
        assert runtime.tokens(call) == alone(model, prompt, **option)
        usage = runtime.end(call).usage
        assert usage.prompt == usage.cached + usage.computed


def test_the_oldest_is_never_retracted(model: CausalLM) -> None:
    asked = prompts(9, [20] * 5)
    runtime = Runtime(model, num_pages=40)
    runtime.scheduler.admission.min_share = runtime.scheduler.admission.growth_share = 0.0
    oldest = runtime.run(asked[0], max_tokens=120)
    runtime.step()
    for prompt in asked[1:]:
        runtime.run(prompt, max_tokens=60)
    request = runtime.slots.requests[runtime.slots.active[0]]
    assert request is not None
    runtime.finish()
    assert request.id == oldest
    assert request.num_retractions == 0
    assert runtime.metrics.retractions > 0


def test_a_step_ahead_equals_step_by_step(model: CausalLM) -> None:
    rng = np.random.default_rng(10)
    asked = prompts(11, rng.integers(1, 60, 20).tolist())
    outcomes = []
    for overlap in (0, 1):
        runtime = Runtime(model, overlap=overlap, num_pages=120)
        calls = [
            runtime.run(
                prompt,
                max_tokens=5 + i,
                temperature=float(i % 2),
                seed=i,
                stop_token_ids=tuple(range(3 + i, 120, 17)),
                frequency_penalty=0.5 * (i % 3),
                logprobs=i % 4 == 0,
                top_logprobs_num=2 * (i % 4 == 0),
            )
            for i, prompt in enumerate(asked)
        ]
        runtime.finish()
        outcomes.append(
            [(runtime.tokens(c), runtime.end(c).reason, runtime.end(c).matched) for c in calls]
        )
    assert outcomes[0] == outcomes[1]
    assert {reason for _, reason, _ in outcomes[0]} == {"stop", "length"}
