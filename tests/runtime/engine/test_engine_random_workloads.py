"""Random programs of calls against one engine; every invariant is checked after every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_harness import Runtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.wire import Abort, Done, FlushCache, Release, Scored

PREFIXES = [np.random.default_rng(i).integers(3, 128, 60).tolist() for i in range(3)]

prompts = st.builds(
    lambda which, n, tail: PREFIXES[which][:n] + tail,
    st.integers(0, 2),
    st.integers(1, 60),
    st.lists(st.integers(3, 127), max_size=5),
)
runs = st.tuples(
    st.just("run"),
    prompts,
    st.fixed_dictionaries(
        {
            "branch": st.integers(1, 4),
            "max_tokens": st.integers(0, 25),
            "temperature": st.sampled_from([0.0, 1.0]),
            "seed": st.integers(0, 5),
            "prompt_logprobs_from": st.sampled_from([-1, -1, 0, 5]),
            "deadline_s": st.sampled_from([None, None, 6.0]),
        }
    ),
)
scores = st.tuples(
    st.just("score"),
    prompts,
    st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=6), min_size=1, max_size=6),
)
actions = st.lists(
    st.one_of(
        runs,
        runs,
        scores,
        st.tuples(st.just("abort"), st.integers(0, 10)),
        st.tuples(st.just("release"), st.integers(1, 4)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("step"), st.integers(1, 6)),
    ),
    min_size=5,
    max_size=40,
)


@pytest.mark.parametrize("overlap", [0, 1])
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(actions=actions, num_pages=st.sampled_from([24, 30, 60]), page_size=st.sampled_from([4, 7]))
def test_random_workloads_end_every_call_once_and_lose_no_page(
    model: CausalLM, overlap: int, actions: list[Any], num_pages: int, page_size: int
) -> None:
    runtime = Runtime(
        model,
        num_pages=num_pages,
        page_size=page_size,
        max_running=4,
        max_step_tokens=24,
        overlap=overlap,
        overtake_limit=3,
    )
    runtime.scheduler.admission.min_share = 0.0
    calls: dict[int, tuple[Any, ...]] = {}
    for action in actions:
        match action:
            case ("run", prompt, options):
                calls[runtime.run(prompt, **options)] = action
            case ("score", prompt, options):
                calls[runtime.score(prompt, options)] = action
            case ("abort", back):
                if calls:
                    runtime.put(Abort(max(1, runtime.num_ids - back)))
            case ("release", branch):
                runtime.put(Release((branch,)))
            case ("flush",):
                runtime.put(FlushCache(0))
            case ("step", count):
                for _ in range(count):
                    runtime.clock.now += 1.0
                    runtime.step()
    runtime.finish()
    for call, action in calls.items():
        end = runtime.end(call)
        if isinstance(end, Done):
            assert end.usage.completion == len(runtime.tokens(call))
            if end.reason == "length":
                options = action[2]
                assert len(runtime.tokens(call)) == options["max_tokens"]
                assert end.usage.prompt == end.usage.cached + end.usage.computed
                if options["prompt_logprobs_from"] >= 0:
                    first = options["prompt_logprobs_from"]
                    assert len(end.prompt_logprobs) == max(0, len(action[1]) - first)
                check = {
                    k: v for k, v in options.items() if k in ("max_tokens", "temperature", "seed")
                }
                if call % 7 == 0:
                    alone = Runtime(model, reuse=False, max_step_tokens=100)
                    assert alone.generate(action[1], **check) == runtime.tokens(call)
        elif isinstance(end, Scored):
            assert [len(row) for row in end.logprobs] == [len(option) for option in action[2]]
    assert len(runtime.slots.active) == 0
    runtime.cache.clear()
    assert runtime.allocator.num_free == runtime.kv.num_usable
