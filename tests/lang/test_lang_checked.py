"""Values that their type may refuse: generated again, and the branch as if they never were."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lang.sample_types import Even, Span
from lang.scripted_runtime import ScriptedRuntime

import radixrt as rt
from radixrt.protocol import Close, Generate, Open


def numbers(runtime: ScriptedRuntime, *answers: int) -> list[tuple[str, ...]]:
    """Answer with these, one after the other; returns what each generation had excluded."""
    excluded: list[tuple[str, ...]] = []
    left = iter(answers)

    def answer(text: str, generate: Generate) -> str:
        if generate.constraint is None:
            return "free"
        excluded.append(generate.constraint.exclude)
        return f'{{"number":{next(left)}}}'

    runtime.answer = answer
    return excluded


@rt.function
def ask(s: rt.ProgramState, **options: Any) -> None:
    s += "?" + rt.gen("x", type=Even, **options) + "!" + rt.gen("after")


def test_the_branch_holds_exactly_the_accepted_text(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    excluded = numbers(runtime, 1, 3, 4)
    state = ask.run(backend=backend)
    assert state["x"] == Even(number=4)
    assert state["x"] is state["x"]
    assert excluded == [(), ('{"number":1}',), ('{"number":1}', '{"number":3}')]
    assert "".join(span.text for span in state.execution.spans()) == '?{"number":4}!free'
    assert state.text() == '?{"number":4}!free'
    info = state.meta("x")
    assert (info["attempts"], info["completion_tokens"]) == (3, 3 * len('{"number":4}'))


def test_refused_branches_and_marks_are_closed_and_nothing_else(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    numbers(runtime, 1, 2)
    state = ask.run(backend=backend)
    state.close()
    runtime.wait_for(lambda: not runtime.branches)
    assert len(runtime.sent(Open)) == len(runtime.sent(Close)) == 3


def test_a_value_that_is_accepted_at_once_costs_one_message(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    numbers(runtime, 2)
    ask.run(backend=backend)
    assert [type(m).__name__ for m in runtime.sends[0]] == ["Open", "Append", "Open", "Generate"]
    others = [type(m).__name__ for m in runtime.messages[4:]]
    assert sorted(others) == ["Append", "Close", "Generate"]


def test_after_the_last_retry_the_refusal_is_raised_and_later_operations_fail(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    numbers(runtime, 1, 3, 5)
    with pytest.raises(rt.ProgramError, match=r'gen\("x"\).*it is odd.*attempt 3 of 3') as caught:
        ask.run(retries=2, backend=backend)
    assert isinstance(caught.value.cause, rt.ValueRefused)
    assert len(runtime.sent(Generate)) == 3


def test_no_retries_means_one_attempt(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    excluded = numbers(runtime, 1)
    with pytest.raises(rt.ProgramError, match="attempt 1 of 1"):
        ask.run(retries=0, backend=backend)
    assert excluded == [()]


def test_a_body_that_meets_the_refusal_may_go_on_elsewhere(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    numbers(runtime, 1)

    @rt.function
    def program(s: rt.ProgramState) -> str:
        s += "?"
        attempt = s.fork(1)[0]
        attempt += rt.gen("x", type=Even, retries=0)
        try:
            return str(attempt["x"])
        except rt.ProgramError:
            attempt += rt.gen("more")
            with pytest.raises(rt.ProgramError, match=r'gen\("x"\)'):
                _ = attempt["more"]
            s += "none" + rt.gen("y")
            return str(s["y"])

    assert program.run(backend=backend).ret_value == "free"


def test_a_post_init_has_its_say_too(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    answers = iter(['{"first":2,"last":1}', '{"first":2,"last":3}'])
    runtime.answer = lambda text, generate: next(answers)

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "?" + rt.gen("x", type=Span)

    assert program.run(backend=backend)["x"] == Span(2, 3)


def test_a_fork_begins_after_the_accepted_value(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    numbers(runtime, 1, 2)

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "?" + rt.gen("x", type=Even)
        forks = s.fork(2)
        forks += lambda i: f"{i}" + rt.gen("y")
        forks.join("concate_and_append")

    state = program.run(backend=backend)
    assert state.text() == '?{"number":2}0free1free'


def test_rows_of_a_batch_hold_no_thread_while_values_are_checked(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.answer = lambda text, generate: (
        f'{{"number":{len(generate.constraint.exclude) + int(text[1:])}}}'
        if generate.constraint is not None
        else ""
    )

    @rt.function
    def program(s: rt.ProgramState, number: int) -> None:
        s += f"?{number}" + rt.gen("x", type=Even)

    rows = [{"number": number} for number in range(40)]
    states = program.run_batch(rows, backend=backend, num_threads=2)
    assert [state["x"].number for state in states] == [n + n % 2 for n in range(40)]  # type: ignore[index]


def test_a_coroutine_awaits_its_value(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    numbers(runtime, 1, 2)

    @rt.function
    async def program(s: rt.ProgramState) -> int:
        s += "?" + rt.gen("x", type=Even)
        return int((await s.aget("x")).number)

    assert asyncio.run(program.arun(backend=backend)).ret_value == 2


def test_closing_a_state_ends_a_value_that_is_being_generated(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "?" + rt.gen("x", type=Even)
        s.close()

    with pytest.raises(rt.ProgramError, match="was closed"):
        program.run(backend=backend)
    runtime.wait_for(lambda: not runtime.branches)


def test_a_deadline_bounds_all_attempts_together(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True
    with pytest.raises(rt.ProgramError, match="deadline"):
        ask.run(backend=backend, timeout=0.05)


def test_a_failure_of_the_runtime_is_no_refusal(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    def fail(text: str, generate: Generate) -> str:
        raise rt.Overloaded("full")

    runtime.answer = fail
    with pytest.raises(rt.ProgramError, match="full"):
        ask.run(backend=backend)
    assert len(runtime.sent(Generate)) <= 2


def test_a_validator_that_breaks_ends_its_call_alone(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @dataclass
    class Broken:
        number: int

        def __post_init__(self) -> None:
            raise ZeroDivisionError("a bug")

    numbers(runtime, 2, 4)

    @rt.function
    def program(s: rt.ProgramState, tp: type) -> Any:
        s += "?" + rt.gen("x", type=tp)
        return s["x"]

    with pytest.raises(rt.ProgramError, match=r"validator failed.*a bug"):
        program.run(Broken, backend=backend)
    assert program.run(Even, backend=backend).ret_value == Even(number=4)


def test_validators_run_on_no_thread_of_the_client(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    names: list[str] = []

    @dataclass
    class Named:
        number: int

        def __post_init__(self) -> None:
            names.append(threading.current_thread().name)

    numbers(runtime, 2)

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "?" + rt.gen("x", type=Named)

    program.run(backend=backend)
    assert names
    assert all(name.startswith("radixrt-check") for name in names)


def test_text_is_streamed_once_it_is_accepted(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    numbers(runtime, 1, 2)
    state = ask.run(backend=backend, stream=True)
    assert "".join(state.text_iter()) == '?{"number":2}!free'


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 4))
def test_the_first_acceptable_of_the_allowed_attempts_counts(
    answers: list[int], retries: int
) -> None:
    runtime = ScriptedRuntime()
    numbers(runtime, *answers, 2)
    allowed = [*answers, 2][: retries + 1]
    good = next((n for n in allowed if n % 2 == 0), None)
    with rt.Backend(runtime.transport) as backend:
        if good is None:
            with pytest.raises(rt.ProgramError, match="attempt"):
                ask.run(retries=retries, backend=backend)
        else:
            state = ask.run(retries=retries, backend=backend)
            assert state["x"] == Even(number=good)
            assert state.text() == f'?{{"number":{good}}}!free'
