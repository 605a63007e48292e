"""What a request gets does not depend on which memory its prefix was in."""

from __future__ import annotations

import threading
from random import Random

import numpy as np
import pytest
from engine_harness import Runtime

from radixrt.cache.hicache import RETRY
from radixrt.cache.tier_policy import TierPolicy
from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.scheduling.scheduler import MAX_PUT_OFF


def evict(runtime: Runtime) -> None:
    """Let the copies to the host end, then take everything from the device."""
    assert runtime.tiers is not None
    assert runtime.tiers.fence(10)
    runtime.cache.clear()
    assert runtime.cache.num_cached == 0
    runtime.kv.check()


def drain(runtime: Runtime) -> None:
    assert runtime.tiers is not None
    assert runtime.tiers.fence(10)
    runtime.kv.check()
    assert runtime.tiers.host.num_moving == 0
    host = runtime.tiers.host
    assert host.pages.num_free + host.cache.num_cached == host.pages.num_usable


def prompts(num: int, seed: int) -> list[list[int]]:
    """Prompts that share prefixes of any length."""
    random = Random(seed)
    made: list[list[int]] = []
    for _ in range(num):
        base = random.choice(made)[: random.randrange(60)] if made and random.random() < 0.7 else []
        made.append(base + [random.randrange(3, 120) for _ in range(random.randrange(1, 40))])
    return made


@pytest.mark.parametrize("length", [4, 5, 7, 8, 31, 32, 33, 130])
@pytest.mark.parametrize("overlap", [0, 1])
def test_an_evicted_prompt_comes_back_from_the_host(
    model: CausalLM, length: int, overlap: int
) -> None:
    prompt = [3 + i * 7 % 110 for i in range(length)]
    runtime = Runtime(model, host_pages=80, overlap=overlap, max_context=200)
    expected = runtime.generate(prompt)
    evict(runtime)
    call = runtime.run(prompt)
    runtime.finish()
    assert runtime.tokens(call) == expected
    full = (length - 1) // 4 * 4
    usage = runtime.end(call).usage
    # The page in which the prompt ends was written to the end by the generation after it.
    assert usage.cached >= full
    assert usage.computed == length - usage.cached
    drain(runtime)


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_a_small_device_over_a_large_host_is_one_large_device(
    model: CausalLM, page_size: int, overlap: int
) -> None:
    """The device has room for little more than one request, so every hit is the host's."""
    sequences = prompts(24, seed=page_size)
    large = Runtime(model, num_pages=4096 // page_size, page_size=page_size, max_context=128)
    small = Runtime(
        model,
        num_pages=144 // page_size + 1,
        page_size=page_size,
        max_context=128,
        host_pages=8192 // page_size,
        overlap=overlap,
    )
    for sequence in sequences:
        expected = large.run(sequence)
        large.finish()
        call = small.run(sequence)
        small.finish()
        assert small.tokens(call) == large.tokens(expected)
        evict(small)
        usage, wanted = small.end(call).usage, large.end(expected).usage
        # Full pages are all there; the host has no partial ones.
        assert usage.cached // page_size >= wanted.cached // page_size
    drain(small)


@pytest.mark.parametrize("seed", range(3))
def test_requests_together_under_pressure_get_what_they_get_alone(
    model: CausalLM, seed: int
) -> None:
    sequences = prompts(40, seed=100 + seed)
    alone = Runtime(model, reuse=False)
    expected = [alone.generate(sequence) for sequence in sequences]
    random = Random(seed)
    runtime = Runtime(
        model, num_pages=64, host_pages=random.choice([24, 100, 400]), overlap=seed % 2
    )
    calls = []
    for sequence in sequences:
        calls.append(runtime.run(sequence))
        for _ in range(random.randrange(4)):
            runtime.step()
    runtime.finish()
    assert [runtime.tokens(call) for call in calls] == expected
    drain(runtime)


def test_cancelled_requests_leave_nothing_behind(model: CausalLM) -> None:
    from radixrt.runtime.wire import Abort

    random = Random(5)
    runtime = Runtime(model, num_pages=64, host_pages=60, overlap=1)
    for sequence in prompts(60, seed=7):
        call = runtime.run(sequence)
        for _ in range(random.randrange(3)):
            runtime.step()
        if random.random() < 0.5:
            runtime.put(Abort(call))
        if random.random() < 0.2:
            runtime.cache.clear()
    runtime.finish()
    drain(runtime)
    runtime.cache.clear()
    assert runtime.allocator.num_free + runtime.cache.num_cached == runtime.allocator.num_usable


def test_a_step_that_fails_between_plan_and_launch_gives_its_loads_back(model: CausalLM) -> None:
    prompt = list(range(3, 60))
    runtime = Runtime(model, host_pages=80)
    expected = runtime.generate(prompt)
    evict(runtime)
    launch = runtime.engine.launch

    def fail(plan: object) -> object:
        raise RuntimeError("no device")

    runtime.engine.launch = fail  # type: ignore[method-assign, assignment]
    call = runtime.run(prompt)
    runtime.finish()
    assert runtime.end(call).code == "engine_fault"
    runtime.engine.launch = launch  # type: ignore[method-assign]
    drain(runtime)
    assert runtime.generate(prompt) == expected


def test_a_dead_copy_thread_delays_nobody(model: CausalLM) -> None:
    prompt = list(range(3, 60))
    runtime = Runtime(model, host_pages=80)
    expected = runtime.generate(prompt)
    evict(runtime)
    assert runtime.host is not None
    runtime.host.mover.close()  # the forward copies what it needs
    call = runtime.run(prompt)
    runtime.finish()
    assert runtime.tokens(call) == expected
    assert runtime.end(call).usage.cached >= 56


def test_who_waits_for_a_copy_makes_it_when_the_copy_thread_cannot(model: CausalLM) -> None:
    prompt = list(range(3, 60))
    runtime = Runtime(model, host_pages=80)
    expected = runtime.generate(prompt)
    evict(runtime)
    mover = runtime.host.mover  # type: ignore[union-attr]
    copy_group = mover.copy_group  # type: ignore[attr-defined]

    def fail_in_the_copy_thread(*args: object) -> None:
        if threading.current_thread().name == "radixrt-copy":
            raise RuntimeError("bus error")
        copy_group(*args)

    mover.copy_group = fail_in_the_copy_thread  # type: ignore[attr-defined]
    call = runtime.run(prompt)
    runtime.finish()
    assert runtime.tokens(call) == expected
    assert runtime.end(call).usage.cached >= 56
    mover.copy_group = copy_group  # type: ignore[attr-defined]
    drain(runtime)


def test_a_backup_that_fails_is_made_at_the_next_chance(model: CausalLM) -> None:
    prompt = list(range(3, 60))
    runtime = Runtime(model, host_pages=80)
    mover = runtime.host.mover  # type: ignore[union-attr]
    copy_group = mover.copy_group  # type: ignore[attr-defined]

    def fail(*args: object) -> None:
        raise RuntimeError("bus error")

    mover.copy_group = fail  # type: ignore[attr-defined]
    expected = runtime.generate(prompt)
    drain(runtime)
    assert runtime.tiers is not None
    assert runtime.tiers.counters.failed_backups > 0
    assert runtime.tiers.host.cache.num_cached == 0
    mover.copy_group = copy_group  # type: ignore[attr-defined]
    assert runtime.generate(prompt) == expected
    evict(runtime)
    call = runtime.run(prompt)
    runtime.finish()
    assert runtime.tokens(call) == expected
    assert runtime.end(call).usage.cached >= 56


def test_what_is_cheaper_to_compute_is_computed(model: CausalLM) -> None:
    prompt = list(range(3, 60))
    runtime = Runtime(model, host_pages=80, policy=TierPolicy())
    expected = runtime.generate(prompt)
    evict(runtime)
    assert runtime.tiers is not None
    for _ in range(200):
        runtime.tiers.costs.tier("host").observe(10, 5.0)
    call = runtime.run(prompt)
    runtime.finish()
    assert runtime.tokens(call) == expected
    assert runtime.end(call).usage.cached == 0
    assert runtime.tiers.counters.not_worth > 0
    drain(runtime)


def test_a_tier_that_was_measured_at_a_bad_time_is_tried_again(model: CausalLM) -> None:
    prompt = list(range(3, 60))
    runtime = Runtime(model, host_pages=80, policy=TierPolicy())
    expected = runtime.generate(prompt)
    assert runtime.tiers is not None
    for _ in range(200):
        runtime.tiers.costs.tier("host").observe(10, 5.0)
    hits = []
    for _ in range(RETRY + 2):
        evict(runtime)
        call = runtime.run(prompt)
        runtime.finish()
        assert runtime.tokens(call) == expected
        hits.append(runtime.end(call).usage.cached > 0)
    assert hits == [False] * RETRY + [True, False]
    drain(runtime)


def test_copies_to_the_host_wait_for_a_late_loop_but_not_for_ever(model: CausalLM) -> None:
    runtime = Runtime(model, host_pages=80, max_context=200)
    assert runtime.tiers is not None
    drain(runtime)
    scheduler, tiers = runtime.loop.scheduler, runtime.tiers
    scheduler.poll_tiers()
    tiers.backup("", np.arange(8, dtype=np.int32))
    for _ in range(MAX_PUT_OFF):
        scheduler.poll_tiers(is_late=True)
        assert tiers.is_copying_down
    scheduler.poll_tiers(is_late=True)
    assert not tiers.is_copying_down  # the device has nothing of it
