"""What programs tell of their branches decides whose pages stay when memory is short."""

from __future__ import annotations

import numpy as np
from engine_harness import Runtime, params

from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.wire import FromEngine, Hold, Release, Run, ToEngine, pack_ids

MINE, OTHERS = list(range(3, 43)), list(range(50, 90))


def runtime_with(model: CausalLM) -> Runtime:
    """A cache of 120 tokens."""
    return Runtime(model, num_pages=31, max_context=120)


def run(runtime: Runtime, prompt: list[int], branch: int, *told: ToEngine) -> None:
    runtime.clock.now += 1.0
    runtime.run(prompt, branch=branch, max_tokens=1)
    runtime.finish()
    runtime.put(*told)
    runtime.step()


def press(runtime: Runtime) -> None:
    """Need 60 tokens of cache."""
    runtime.clock.now += 1.0
    runtime.run([100 + i % 20 for i in range(60)], branch=99, max_tokens=1)
    runtime.finish()


def cached(runtime: Runtime, prompt: list[int]) -> int:
    return runtime.cache.peek("", np.array(prompt, np.int32))


def test_the_branch_that_is_held_stays_though_it_was_used_before(model: CausalLM) -> None:
    for is_held in (False, True):
        runtime = runtime_with(model)
        run(runtime, MINE, 1, *([Hold(1, 100.0, 2)] if is_held else []))
        run(runtime, OTHERS, 2)
        press(runtime)
        assert (cached(runtime, MINE) == len(MINE)) == is_held
        assert (cached(runtime, OTHERS) == len(OTHERS)) != is_held


def test_a_wish_for_a_branch_counts_after_its_next_call_too(model: CausalLM) -> None:
    runtime = runtime_with(model)
    runtime.put(Hold(1, 100.0, 2))
    run(runtime, MINE, 1)
    run(runtime, OTHERS, 2)
    press(runtime)
    assert cached(runtime, MINE) == len(MINE)


def test_a_lease_that_was_taken_back_or_has_run_out_holds_nothing(model: CausalLM) -> None:
    for ttl_s, waits_s, told in ((100.0, 0.0, Hold(1, 0.0)), (5.0, 10.0, None)):
        runtime = runtime_with(model)
        run(runtime, MINE, 1, Hold(1, ttl_s, 2))
        run(runtime, OTHERS, 2, *([told] if told else []))
        runtime.clock.now += waits_s
        press(runtime)
        assert cached(runtime, MINE) < len(MINE)


def test_a_closed_branch_goes_first_and_one_that_was_left_in_its_turn(model: CausalLM) -> None:
    for ended in (True, False):
        runtime = runtime_with(model)
        run(runtime, MINE, 1)
        run(runtime, OTHERS, 2, Release((2,), ended))
        press(runtime)
        # Nobody's branch goes before one that is idle, and its ended tail before everything.
        assert cached(runtime, MINE) == len(MINE)
        assert cached(runtime, OTHERS) < len(OTHERS)


def test_a_fork_that_is_done_is_kept_while_its_siblings_run(model: CausalLM) -> None:
    def start(runtime: Runtime, prompt: list[int], branch: int, family: int, n: int) -> None:
        runtime.num_ids += 1
        packed = pack_ids(np.array(prompt, np.int32))
        sampling = params(max_tokens=n)
        runtime.put(Run(runtime.num_ids, branch, packed, sampling, family=family))

    def answers(runtime: Runtime) -> list[FromEngine]:
        return [message for message in runtime.channel.sent if hasattr(message, "usage")]

    for family in (0, 7):
        runtime = runtime_with(model)
        start(runtime, MINE, 1, family, 1)
        start(runtime, [90, 91, 92, 93], 2, family, 20)  # the sibling, which takes longer
        while not answers(runtime):
            runtime.step()
        runtime.clock.now += 1.0
        start(runtime, OTHERS, 3, 0, 1)
        while len(answers(runtime)) < 2:
            runtime.step()
        runtime.clock.now += 1.0
        start(runtime, [100 + i % 20 for i in range(40)], 4, 0, 1)
        while len(answers(runtime)) < 3:
            runtime.step()
        assert (cached(runtime, MINE) == len(MINE)) == (family > 0)
        runtime.finish()


def test_no_lease_keeps_another_request_from_running(model: CausalLM) -> None:
    runtime = runtime_with(model)
    run(runtime, MINE, 1, Hold(1, 1000.0, 3))
    run(runtime, OTHERS, 2, Hold(2, 1000.0, 3))
    runtime.run([100 + i % 20 for i in range(110)], branch=3, max_tokens=5)
    runtime.finish()
    assert len(runtime.tokens(runtime.num_ids)) == 5
