from __future__ import annotations

import asyncio
import threading

import pytest
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.errors import DeadlineExceeded, Overloaded, ProgramError
from radixrt.protocol import Generate


@rt.function
def plain(s: rt.ProgramState, word: str) -> str:
    s += word + rt.gen("x")
    return str(s["x"])


@rt.function
async def coroutine(s: rt.ProgramState, word: str) -> str:
    with s.var_scope("scope"):
        s += word + rt.gen("x")
    value = await s.aget("x")
    assert await s.aget("scope") == word + value
    s["set"] = 1
    assert await s.aget("set") == 1
    s += rt.gen("y")
    return str(value)


def test_run_works_inside_a_running_event_loop(backend: rt.Backend) -> None:
    async def main() -> list[str]:
        return [plain.run("a", backend=backend).ret_value, coroutine("b", backend=backend)["x"]]

    assert asyncio.run(main()) == ["<1>", "<1>"]


def test_an_async_body_runs_without_a_loop_too(backend: rt.Backend) -> None:
    state = coroutine.run("ab", backend=backend)
    assert (state.ret_value, state["y"]) == ("<2>", "<5>")


@pytest.mark.parametrize("program", [plain, coroutine])
def test_arun_many_at_once(
    runtime: ScriptedRuntime, backend: rt.Backend, program: rt.Function
) -> None:
    runtime.is_holding = True

    async def main() -> list[str]:
        tasks = [asyncio.create_task(program.arun("a" * i, backend=backend)) for i in range(30)]
        await asyncio.to_thread(runtime.wait_for, lambda: len(runtime.held) == 30)
        runtime.stop_holding()
        return [(await task).ret_value for task in tasks]

    assert asyncio.run(main()) == [f"<{i}>" for i in range(30)]


def test_arun_holds_no_thread_once_the_body_has_returned(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True
    bodies: set[int] = set()

    @rt.function
    def sends(s: rt.ProgramState) -> None:
        bodies.add(threading.get_ident())
        s += rt.gen("x")

    async def main() -> None:
        tasks = []
        for i in range(100):
            tasks.append(asyncio.create_task(sends.arun(backend=backend)))
            await asyncio.to_thread(runtime.wait_for, lambda i=i: len(runtime.held) == i + 1)
        runtime.stop_holding()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert len(bodies) <= 64 < 100


@pytest.mark.parametrize("program", [plain, coroutine])
def test_cancelling_arun_cancels_its_calls(
    runtime: ScriptedRuntime, backend: rt.Backend, program: rt.Function
) -> None:
    runtime.is_holding = True

    async def main() -> None:
        task = asyncio.create_task(program.arun("a", backend=backend))
        await asyncio.to_thread(runtime.wait_for, lambda: len(runtime.held) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    runtime.wait_for(lambda: len(runtime.cancelled) == 1 and not runtime.branches)


@pytest.mark.parametrize("program", [plain, coroutine])
def test_failures_and_timeouts_come_out_of_arun(
    runtime: ScriptedRuntime, backend: rt.Backend, program: rt.Function
) -> None:
    def full(text: str, generate: Generate) -> str:
        raise Overloaded("full")

    runtime.answer = full
    with pytest.raises(ProgramError, match="full"):
        asyncio.run(program.arun("a", backend=backend))
    runtime.is_holding = True
    with pytest.raises(ProgramError) as caught:
        asyncio.run(program.arun("a", backend=backend, timeout=0.02))
    assert isinstance(caught.value.cause, DeadlineExceeded)


def test_async_bodies_run_in_batches(backend: rt.Backend) -> None:
    states = coroutine.run_batch([("a",), ("bb",)], backend=backend)
    assert [state.ret_value for state in states] == ["<1>", "<2>"]
