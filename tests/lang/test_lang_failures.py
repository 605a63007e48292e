from __future__ import annotations

import inspect

import pytest
from lang.scripted_runtime import ScriptedRuntime, interrupt_when

import radixrt.lang as rt
from radixrt.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    Overloaded,
    ProgramError,
    PromptTooLong,
    ProtocolError,
    TransportError,
)
from radixrt.protocol import Cancel, Chosen, Finished, Generate, Usage


def fail_at(runtime: ScriptedRuntime, marker: str) -> None:
    """Make generations fail whose prompt contains ``marker``."""

    def answer(text: str, generate: Generate) -> str:
        if marker in text:
            raise Overloaded(f"no room for {marker}")
        return "ok"

    runtime.answer = answer


def here() -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def test_run_raises_the_first_failure_with_its_operation_and_line(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    fail_at(runtime, "BAD")
    lines = []

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "fine" + rt.gen("before")
        s += "BAD"
        lines.append(here() + 1)
        s += rt.gen("failing")
        s += "more" + rt.gen("after")

    with pytest.raises(ProgramError) as caught:
        program.run(backend=backend)
    assert caught.value.op == 'gen("failing")'
    assert caught.value.where == f"test_lang_failures.py:{lines[0]}"
    assert isinstance(caught.value.cause, Overloaded)
    assert caught.value.__cause__ is caught.value.cause
    runtime.wait_for(lambda: not runtime.branches)


def test_reading_raises_the_first_failure_and_earlier_values_stay(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    fail_at(runtime, "BAD")
    seen: list[ProgramError] = []

    @rt.function
    def program(s: rt.ProgramState) -> str:
        s += "fine" + rt.gen("before") + "BAD" + rt.gen("failing") + rt.gen("after")
        for read in (
            lambda: s["after"],
            lambda: s["failing"],
            lambda: s.get_meta_info("after"),
            s.text,
            s.messages,
            s.sync,
        ):
            with pytest.raises(ProgramError) as caught:
                read()
            seen.append(caught.value)
        assert s.error() is not None
        return str(s["before"])

    # The body has met the failure and went on, so run does not raise it again.
    state = program.run(backend=backend)
    assert state.ret_value == "ok"
    assert {error.op for error in seen} == {'gen("failing")'}
    error = state.error()
    assert isinstance(error, ProgramError)


def test_a_refused_append_fails_the_branch(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.refused_text = "too much"

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "too much"
        s += rt.gen("x")

    with pytest.raises(ProgramError, match="append at test_lang_failures") as caught:
        program.run(backend=backend)
    assert isinstance(caught.value.cause, PromptTooLong)


def test_a_refusal_before_a_fork_is_the_forks_failure_too(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.refused_text = "too much"

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "too much"
        forks = s.fork(2)
        forks += rt.gen("x")
        forks.join()

    with pytest.raises(ProgramError) as caught:
        program.run(backend=backend)
    assert isinstance(caught.value.cause, PromptTooLong)


def test_an_exception_in_the_body_comes_out_as_it_is_and_cancels_calls(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True
    raised = KeyError("mine")

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen("x")
        raise raised

    with pytest.raises(KeyError) as caught:
        program.run(backend=backend)
    assert caught.value is raised
    (generate,) = runtime.sent(Generate)
    assert runtime.cancelled == [generate.call]
    runtime.wait_for(lambda: not runtime.branches)


def test_a_join_raises_the_failure_of_a_fork(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    fail_at(runtime, "BAD")

    @rt.function
    def program(s: rt.ProgramState) -> None:
        forks = s.fork(3)
        forks += ["a", "BAD", "c"]
        forks += rt.gen("x")
        forks.join()

    with pytest.raises(ProgramError, match="no room for BAD"):
        program.run(backend=backend)


def test_a_failure_of_the_parent_is_found_through_a_fork(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    fail_at(runtime, "BAD")

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "BAD" + rt.gen("parent")
        child = s.fork(1)[0]
        child += rt.gen("child")
        child["child"]

    with pytest.raises(ProgramError) as caught:
        program.run(backend=backend)
    assert caught.value.op == 'gen("parent")'


def test_a_deadline_of_a_generation_ends_it(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.is_holding = True

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen("x", deadline=0.02)

    with pytest.raises(ProgramError) as caught:
        program.run(backend=backend)
    assert isinstance(caught.value.cause, DeadlineExceeded)
    (generate,) = runtime.sent(Generate)
    assert 0 < generate.deadline_s <= 0.02
    assert runtime.sent(Cancel) == [Cancel(generate.call)]


def test_a_timeout_bounds_the_whole_run(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.is_holding = True

    @rt.function
    def program(s: rt.ProgramState) -> None:
        fork = s.fork(1)[0]
        fork += rt.gen("x", deadline=1000)
        fork["x"]

    with pytest.raises(ProgramError) as caught:
        program.run(backend=backend, timeout=0.02)
    assert isinstance(caught.value.cause, DeadlineExceeded)
    assert runtime.sent(Generate)[0].deadline_s <= 0.02


@pytest.mark.parametrize("timeout", [0, -1, True, "1"])
def test_a_timeout_is_a_positive_number(backend: rt.Backend, timeout: object) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        pass

    with pytest.raises(InvalidArgument, match="timeout"):
        program.run(backend=backend, timeout=timeout)  # type: ignore[arg-type]


def test_ctrl_c_while_waiting_cancels_the_calls(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen("x")
        forks = s.fork(2)
        forks += rt.gen("y")
        forks[0]["y"]

    thread = interrupt_when(runtime, lambda: len(runtime.sent(Generate)) == 3)
    with pytest.raises(KeyboardInterrupt):
        program.run(backend=backend)
    thread.join()
    runtime.wait_for(lambda: len(runtime.cancelled) == 3 and not runtime.branches)


def test_a_closed_state_takes_no_more_operations(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "a" + rt.gen("x")

    state = program.run(backend=backend)
    state.close()
    state.close()
    state += rt.gen("y")
    with pytest.raises(ProgramError) as caught:
        state["y"]
    assert isinstance(caught.value.cause, Cancelled)
    with pytest.raises(Cancelled):
        state.fork(2)
    assert state["x"] == "<1>"


def test_a_broken_connection_fails_the_call_that_waits(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen("x")
        runtime.transport.fail(TransportError("the cable was cut"))

    with pytest.raises(ProgramError, match="the cable was cut"):
        program.run(backend=backend)
    with pytest.raises(ProgramError, match="the cable was cut"):
        program.run(backend=backend)


def test_an_answer_of_the_wrong_kind_is_an_error(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen("x") + rt.gen("y")
        first, second = runtime.sent(Generate)
        runtime.put(Chosen(first.call, 0, (), (), Usage()))
        runtime.put(Finished(second.call, (), Usage()))
        with pytest.raises(ProgramError) as caught:
            s["x"]
        assert isinstance(caught.value.cause, ProtocolError)
        with pytest.raises(ProgramError, match="without an output"):
            s["y"]

    program.run(backend=backend)


def test_text_cut_short_is_no_number(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.answer = lambda text, generate: "-"

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen_int("n")

    state = program.run(backend=backend)
    with pytest.raises(ProgramError, match="raise max_tokens"):
        state["n"]


def test_a_text_beyond_the_frame_limit_is_refused_by_the_client() -> None:
    runtime = ScriptedRuntime(max_frame_bytes=1000)

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "x" * 2000 + rt.gen("x")

    with rt.Backend(runtime.transport) as backend, pytest.raises(ProgramError) as caught:
        program.run(backend=backend)
    assert isinstance(caught.value.cause, InvalidArgument)
