from __future__ import annotations

import asyncio

import pytest
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.errors import Cancelled, InvalidArgument, Overloaded, ProgramError
from radixrt.lang.branch import STREAM_CREDIT
from radixrt.protocol import Credit, Generate


@rt.function
def two_answers(s: rt.ProgramState) -> str:
    s += "a " + rt.gen("x") + " b "
    s += rt.gen("y") + "."
    return s["x"] + s["y"]


def first_call(runtime: ScriptedRuntime) -> int:
    runtime.wait_for(lambda: len(runtime.sent(Generate)) >= 1)
    generate = runtime.sent(Generate)[0]
    assert generate.stream
    return int(generate.call)


def test_the_whole_text_comes_in_pieces(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.is_holding = True
    runtime.answer = lambda text, generate: "one two" if text == "a " else "three"
    state = two_answers.run(backend=backend, stream=True)
    pieces = state.text_iter()
    assert next(pieces) == "a "
    call = first_call(runtime)
    runtime.chunk(call, "one ")
    assert next(pieces) == "one "
    runtime.chunk(call, "two")
    assert next(pieces) == "two"
    runtime.stop_holding()
    assert "".join(pieces) == " b three."
    assert state.text() == "a one two b three."
    assert state.ret_value == "one twothree"


def test_a_variable_comes_in_pieces_and_the_rest_with_its_end(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True
    runtime.answer = lambda text, generate: "one two" if text == "a " else "three"
    state = two_answers.run(backend=backend, stream=True)
    pieces = state.text_iter("x")
    runtime.chunk(first_call(runtime), "one")
    assert next(pieces) == "one"
    runtime.stop_holding()
    assert list(pieces) == [" two"]
    assert list(state.text_iter("y")) == ["three"]


def test_without_stream_a_generation_comes_whole(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    state = two_answers.run(backend=backend)
    assert not runtime.sent(Generate)[0].stream
    assert "".join(state.text_iter()) == state.text()
    assert list(state.text_iter("x")) == ["<2>"]


def test_credit_is_given_back_as_text_is_taken(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True
    state = two_answers.run(backend=backend, stream=True)
    call = first_call(runtime)
    for _ in range(STREAM_CREDIT):  # nobody reads: no credit comes back
        runtime.chunk(call, "x")
    assert runtime.credits[call] == 0
    assert runtime.sent(Credit) == []
    pieces = state.text_iter("x")
    taken = ""
    while len(taken) < STREAM_CREDIT:
        taken += next(pieces)
    assert runtime.credits[call] >= STREAM_CREDIT // 2
    runtime.chunk(call, "y")
    assert next(pieces) == "y"
    pieces.close()


def test_closing_the_iterator_cancels_what_still_runs(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True
    state = two_answers.run(backend=backend, stream=True)
    call = first_call(runtime)
    pieces = state.text_iter("x")
    runtime.chunk(call, "one")
    assert next(pieces) == "one"
    pieces.close()
    runtime.wait_for(lambda: call in runtime.cancelled)
    with pytest.raises(ProgramError) as caught:
        state["x"]
    assert isinstance(caught.value.cause, Cancelled)
    runtime.wait_for(lambda: not runtime.branches)


def test_reading_waits_for_the_body_and_knows_what_it_raised(backend: rt.Backend) -> None:
    raised = LookupError("mine")

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "a"
        raise raised

    state = program.run(backend=backend, stream=True)
    with pytest.raises(LookupError) as caught:
        list(state.text_iter())
    assert caught.value is raised
    assert state.error() is raised
    with pytest.raises(LookupError):
        state["x"]


def test_a_failure_ends_the_iterator_with_an_error(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    def answer(text: str, generate: Generate) -> str:
        raise Overloaded("full")

    runtime.answer = answer
    state = two_answers.run(backend=backend, stream=True)
    pieces = state.text_iter()
    assert next(pieces) == "a "
    with pytest.raises(ProgramError, match="full"):
        next(pieces)


def test_an_unknown_variable_is_an_error_once_the_body_has_ended(backend: rt.Backend) -> None:
    state = two_answers.run(backend=backend, stream=True)
    with pytest.raises(InvalidArgument, match="known: x, y"):
        list(state.text_iter("z"))


def test_variables_that_are_no_generation_can_be_iterated(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s["n"] = 5
        with s.var_scope("scope"):
            s += "a" + rt.gen("x") + "b"

    state = program.run(backend=backend, stream=True)
    assert list(state.text_iter("n")) == ["5"]
    assert "".join(state.text_iter("scope")) == "a<1>b"


def test_pieces_come_in_a_running_event_loop_with_their_meta_info(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True
    runtime.answer = lambda text, generate: "one two"

    async def collect() -> list[tuple[str, dict[str, object]]]:
        state = two_answers.run(backend=backend, stream=True)
        pairs = []
        call = await asyncio.to_thread(first_call, runtime)
        runtime.chunk(call, "one ")
        async for text, info in state.text_async_iter("x", return_meta_data=True):
            pairs.append((text, info))
            runtime.stop_holding()
        assert "".join([text async for text in state.text_async_iter()]) == "a one two b one two."
        return pairs

    first, last = asyncio.run(collect())
    assert first[0] == "one "
    assert first[1] == {"completion_tokens": 4, "finish_reason": None}
    assert last[0] == "two"
    assert last[1]["completion_tokens"] == 7
    assert last[1]["finish_reason"] == {"type": "stop", "matched": None}


def test_closing_an_async_iterator_cancels_too(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True

    async def begin_and_leave() -> None:
        state = two_answers.run(backend=backend, stream=True)
        call = await asyncio.to_thread(first_call, runtime)
        runtime.chunk(call, "one ")
        pieces = state.text_async_iter("x")
        assert await anext(pieces) == "one "
        await pieces.aclose()

    asyncio.run(begin_and_leave())
    runtime.wait_for(lambda: first_call(runtime) in runtime.cancelled)


def test_chat_contents_are_streamed(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.user("hi ") + rt.assistant(rt.gen("x"))

    state = program.run(backend=backend, stream=True)
    assert "".join(state.text_iter()) == f"hi {state['x']}"
