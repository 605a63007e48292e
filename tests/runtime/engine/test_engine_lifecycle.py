"""Every call ends once, whatever happens to it; no page is lost on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_harness import Runtime

from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.wire import (
    Abort,
    Done,
    EngineFailed,
    EnginePing,
    EnginePong,
    EngineReply,
    FlushCache,
    QueryStats,
    Release,
    Scored,
    Shutdown,
    Step,
)


def random_prompt(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 128, n).tolist()


def assert_idle(runtime: Runtime) -> None:
    """Nothing runs, and only the tree holds pages; emptied, all pages are free."""
    assert len(runtime.slots.active) == 0
    assert len(runtime.scheduler.queue) == 0
    assert runtime.cache.num_evictable == runtime.cache.num_cached
    runtime.cache.clear()
    assert runtime.allocator.num_free == runtime.kv.num_usable


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 9])
def test_an_abort_in_any_state_ends_the_call_once(
    model: CausalLM, steps: int, overlap: int
) -> None:
    runtime = Runtime(model, max_step_tokens=16, overlap=overlap, max_running=4)
    prompt = random_prompt(0, 40)
    calls = [runtime.run([*prompt, i], max_tokens=20) for i in range(3, 10)]
    calls.append(runtime.score(prompt, [[3, 4, 5], [3, 6, 7], [8, 9]]))
    for _ in range(steps):
        runtime.step()
    runtime.put(*(Abort(call) for call in calls), Abort(calls[0]), Abort(999))
    runtime.finish()
    for call in calls[:-1]:
        end = runtime.end(call)
        assert isinstance(end, Done)
        assert end.usage.completion == len(runtime.tokens(call))
        assert end.reason == "abort"
    end = runtime.end(calls[-1])
    assert isinstance(end, EngineFailed | Scored)
    assert_idle(runtime)


def test_an_abort_after_the_end_is_ignored(model: CausalLM) -> None:
    runtime = Runtime(model)
    call = runtime.run([3, 4, 5])
    runtime.finish()
    runtime.put(Abort(call))
    runtime.finish()
    assert runtime.end(call).reason == "length"


@pytest.mark.parametrize("overlap", [0, 1])
def test_the_stop_token_is_the_last_one_sent(model: CausalLM, overlap: int) -> None:
    prompt = random_prompt(1, 10)
    plain = Runtime(model).generate(prompt, max_tokens=12)
    runtime = Runtime(model, overlap=overlap)
    call = runtime.run(prompt, max_tokens=12, stop_token_ids=(plain[5], 1))
    runtime.finish()
    first = plain.index(plain[5])
    assert runtime.tokens(call) == plain[: first + 1]
    assert (runtime.end(call).reason, runtime.end(call).matched) == ("stop", plain[5])
    assert runtime.end(call).usage.completion == first + 1


def test_min_tokens_holds_stop_tokens_back(model: CausalLM) -> None:
    prompt = random_prompt(1, 10)
    stops = tuple(range(128))
    runtime = Runtime(model)
    short = runtime.run(prompt, max_tokens=9, stop_token_ids=stops[:100])
    held = runtime.run(prompt, max_tokens=9, min_tokens=4, stop_token_ids=stops[:100])
    runtime.finish()
    assert len(runtime.tokens(held)) >= 5 or runtime.end(held).matched is None
    assert all(token >= 100 for token in runtime.tokens(held)[:4])
    assert len(runtime.tokens(short)) <= len(runtime.tokens(held))


def test_all_new_tokens_of_a_step_are_one_message(model: CausalLM) -> None:
    runtime = Runtime(model)
    for i in range(5):
        runtime.run(random_prompt(i, 4), max_tokens=3)
    runtime.finish()
    steps = [message for message in runtime.channel.sent if isinstance(message, Step)]
    assert [len(step.sampled) for step in steps] == [5, 5, 5]


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_a_deadline_ends_a_call_in_any_state(model: CausalLM, state: str) -> None:
    runtime = Runtime(model, max_running=1)
    first = runtime.run(random_prompt(0, 5), max_tokens=100)
    runtime.step()
    late = runtime.run(random_prompt(1, 5), deadline_s=10.0, max_tokens=100)
    choice = runtime.score(random_prompt(2, 5), [[3, 4], [5, 6]], deadline_s=10.0)
    if state == "running":
        runtime.put(Abort(first))
    for _ in range(4):
        runtime.step()
    assert not runtime.ends(late)
    runtime.clock.now = 10.0
    runtime.finish()
    assert runtime.end(late).reason == "deadline"
    assert (len(runtime.tokens(late)) > 0) == (state == "running")
    assert runtime.end(choice).code == "deadline"
    assert_idle(runtime)


def test_what_can_never_fit_is_refused_with_numbers_and_a_way_out(model: CausalLM) -> None:
    runtime = Runtime(model, num_pages=21, max_context=200)
    for prompt_len, max_tokens, words in (
        (150, 51, ["150", "51", "201", "200"]),
        (60, 30, ["60", "30", "90", "80", "memory"]),
    ):
        call = runtime.run(random_prompt(0, prompt_len), max_tokens=max_tokens)
        runtime.finish()
        end = runtime.end(call)
        assert isinstance(end, EngineFailed)
        assert end.code == "too_long"
        assert all(word in end.message for word in [*words, "shorten"])
    assert len(runtime.generate(random_prompt(0, 60), max_tokens=20)) == 20


@pytest.mark.parametrize(
    "options",
    [
        {"token_ids": []},
        {"token_ids": [128]},
        {"token_ids": [-1]},
        {"token_ids": [3], "top_p": 0.0},
        {"token_ids": [3], "top_k": -1},
        {"token_ids": [3], "min_p": 1.5},
        {"token_ids": [3], "temperature": float("nan")},
        {"token_ids": [3], "repetition_penalty": 0.0},
        {"token_ids": [3], "logit_bias": ((128, 1.0),)},
        {"token_ids": [3], "stop_token_ids": (200,)},
        {"token_ids": [3], "top_logprobs_num": 129},
        {"token_ids": [3], "max_tokens": -1},
    ],
)
def test_bad_arguments_are_refused(model: CausalLM, options: dict[str, Any]) -> None:
    runtime = Runtime(model)
    call = runtime.run(options.pop("token_ids"), **options)
    runtime.finish()
    assert runtime.end(call).code == "bad_request"
    assert len(runtime.generate([3, 4])) == 8


def test_a_full_queue_refuses_for_now(model: CausalLM) -> None:
    runtime = Runtime(model, max_running=1, max_queue=2)
    calls = [runtime.run([3 + i], max_tokens=5) for i in range(4)]
    runtime.finish()
    refused = [c for c in calls if isinstance(runtime.end(c), EngineFailed)]
    assert len(refused) == 2
    for call in refused:
        assert (runtime.end(call).code, runtime.end(call).retryable) == ("overloaded", True)


def test_a_branch_stays_cached_until_memory_is_needed_and_goes_first_when_it_ended(
    model: CausalLM,
) -> None:
    runtime = Runtime(model, num_pages=40)
    kept, ended = random_prompt(0, 40), random_prompt(1, 40)
    runtime.generate(kept, branch=1, max_tokens=1)
    runtime.generate(ended, branch=2, max_tokens=1)
    runtime.put(Release((2,)))
    runtime.step()
    runtime.generate(random_prompt(2, 90), branch=3, max_tokens=1)
    assert runtime.cache.peek("", np.array(kept, np.int32)) == 40
    assert runtime.cache.peek("", np.array(ended, np.int32)) < 40


def test_a_branch_released_while_it_runs_leaves_nothing_parked(model: CausalLM) -> None:
    runtime = Runtime(model)
    runtime.run(random_prompt(0, 20), branch=1)
    runtime.score(random_prompt(0, 20), [[3, 4, 5], [3, 4, 6]], branch=1)
    runtime.step()
    runtime.put(Release((1, 77)))
    runtime.finish()
    assert not runtime.kv.parked
    assert_idle(runtime)


def test_usage_tells_what_eviction_took_from_a_branch(model: CausalLM) -> None:
    runtime = Runtime(model)
    prompt = random_prompt(0, 33)
    tokens = runtime.generate(prompt, branch=1)
    runtime.put(FlushCache(5))
    call = runtime.run(prompt + tokens + [9, 9], branch=1)
    runtime.finish()
    usage = runtime.end(call).usage
    assert (usage.cached, usage.evicted, usage.computed) == (0, 40, 43)
    assert EngineReply(5, {"evicted_pages": 10}) in runtime.channel.sent


def test_namespaces_never_share(model: CausalLM) -> None:
    runtime = Runtime(model)
    prompt = random_prompt(0, 33)
    runtime.generate(prompt, namespace="a")
    for namespace, cached in (("b", 0), ("a", 32)):
        call = runtime.run(prompt, namespace=namespace)
        runtime.finish()
        assert runtime.end(call).usage.cached == cached


def test_a_stream_of_cache_hits_cannot_starve_a_cold_prompt(model: CausalLM) -> None:
    runtime = Runtime(model, max_running=2, overtake_limit=10)
    warm = random_prompt(0, 40)
    runtime.generate(warm, max_tokens=1)
    runtime.run([*warm, 3], max_tokens=2)
    runtime.run([*warm, 4], max_tokens=2)
    cold = runtime.run(random_prompt(1, 40), max_tokens=1)
    later = []
    for i in range(60):
        later.append(runtime.run([*warm, 5 + i, 3], max_tokens=2))
        later.append(runtime.run([*warm, 5 + i, 4], max_tokens=2))
        runtime.step()
        if runtime.ends(cold):
            break
    overtook = sum(1 for call in later if runtime.tokens(call))
    assert 0 < overtook <= 10 + 2  # hits go first, up to the bound and what runs beside it
    runtime.finish()


def test_a_long_prompt_does_not_stop_others_from_decoding(model: CausalLM) -> None:
    runtime = Runtime(model, max_step_tokens=16, max_running=4)
    running = runtime.run(random_prompt(0, 4), max_tokens=40)
    runtime.step()
    long = runtime.run(random_prompt(1, 150), max_tokens=1)
    before = len(runtime.tokens(running))
    num_steps = 0
    while not runtime.ends(long):
        runtime.step()
        num_steps += 1
    assert num_steps > 5
    assert len(runtime.tokens(running)) == before + num_steps


def break_once(runtime: Runtime, name: str) -> None:
    working: Callable[..., Any] = getattr(runtime.engine, name)

    def broken(*args: Any) -> Any:
        setattr(runtime.engine, name, working)
        raise RuntimeError("device lost")

    setattr(runtime.engine, name, broken)


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("where", ["launch", "sample", "read"])
def test_a_step_that_raises_fails_its_calls_and_the_engine_goes_on(
    model: CausalLM, where: str, overlap: int
) -> None:
    prompt = random_prompt(0, 30)
    runtime = Runtime(model, max_running=3, overlap=overlap)
    calls = [runtime.run([*prompt, i], max_tokens=6) for i in range(3, 7)]
    calls.append(runtime.score(prompt, [[3, 4, 5], [3, 4, 6]]))
    for _ in range(3):
        runtime.step()
    break_once(runtime, where)
    runtime.finish()
    failed = [
        call
        for call in calls
        if isinstance(runtime.end(call), EngineFailed) and runtime.end(call).code == "engine_fault"
    ]
    assert failed
    expected = Runtime(model, reuse=False).generate([*prompt, 3], max_tokens=6)
    assert runtime.generate([*prompt, 3], max_tokens=6) == expected
    assert_idle(runtime)


def test_what_waits_fails_when_planning_itself_raises(model: CausalLM) -> None:
    runtime = Runtime(model)
    call = runtime.run([3, 4, 5])

    def broken(*_: Any) -> Any:
        raise RuntimeError("poison")

    runtime.scheduler.admission.try_start = broken  # type: ignore[method-assign]
    runtime.finish(10)
    assert "poison" in runtime.end(call).message


def test_what_cannot_be_recovered_is_said_before_it_is_raised(model: CausalLM) -> None:
    runtime = Runtime(model)
    runtime.run([3, 4, 5])

    def broken(*_: Any) -> Any:
        raise RuntimeError("no way back")

    runtime.scheduler.settle = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no way back"):
        runtime.loop.run()
    assert isinstance(runtime.channel.sent[-1], EngineFailed)
    assert runtime.channel.sent[-1].id is None


def test_ended_calls_leave_nothing_behind_for_their_deadlines(model: CausalLM) -> None:
    runtime = Runtime(model)
    for i in range(300):
        runtime.run([3 + i % 100], deadline_s=1000.0, max_tokens=1)
    runtime.finish()
    assert len(runtime.scheduler.deadlines) == 0
    assert runtime.scheduler.deadlines.num_entries <= 64


def test_pings_and_stats_are_answered_by_the_loop(model: CausalLM) -> None:
    runtime = Runtime(model)
    runtime.run([3, 4, 5])
    runtime.put(EnginePing(7, time.monotonic()), QueryStats(3))
    runtime.step()
    (pong,) = [m for m in runtime.channel.sent if isinstance(m, EnginePong)]
    assert pong.seq == 7
    assert pong.lag_ms >= 0
    (reply,) = [m for m in runtime.channel.sent if isinstance(m, EngineReply)]
    assert reply.id == 3
    assert reply.data["waiting"] == 1
    runtime.finish()
    stats = runtime.loop.stats()
    assert stats["generated_tokens"] == 8
    assert stats["calls_by_end"] == {"length": 1}


def test_shutdown_lets_running_calls_finish_and_refuses_new_ones(model: CausalLM) -> None:
    runtime = Runtime(model)
    call = runtime.run([3, 4, 5])
    runtime.step()
    runtime.put(Shutdown(100.0))
    late = runtime.run([3, 4])
    runtime.loop.run()
    assert runtime.end(call).reason == "length"
    assert runtime.end(late).retryable


def test_shutdown_fails_what_does_not_finish_in_time(model: CausalLM) -> None:
    runtime = Runtime(model, max_running=1)
    calls = [runtime.run([3, 4, i], max_tokens=100) for i in range(3)]
    calls.append(runtime.score([3, 4, 5], [[3, 4], [5, 6]]))
    runtime.step()
    runtime.put(Shutdown(5.0))
    runtime.step()
    runtime.clock.now = 5.0
    runtime.loop.run()
    for call in calls:
        assert runtime.end(call).code == "engine_fault"
    assert_idle(runtime)


def test_a_prompt_that_only_asks_for_logprobs_generates_nothing(model: CausalLM) -> None:
    runtime = Runtime(model)
    call = runtime.run([3, 4, 5], max_tokens=0)
    runtime.finish()
    assert runtime.tokens(call) == []
    assert runtime.end(call).reason == "length"
