from __future__ import annotations

import pytest
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.errors import InvalidArgument
from radixrt.protocol import Append, Open, Select

OPTIONS = ["red", "green", "blue"]


def test_a_selection_is_one_message_whatever_the_number_of_options(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.choose = lambda text, options: 1

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "colour: " + rt.select("colour", OPTIONS)
        s += "!"

    state = program.run(backend=backend)
    assert state["colour"] == "green"
    assert state.text() == "colour: green!"
    ((first, second, third),) = runtime.sends
    assert isinstance(first, Open)
    assert isinstance(second, Append)
    assert isinstance(third, Select)
    assert third.options == tuple(OPTIONS)


@pytest.mark.parametrize(
    ("method", "wire"),
    [
        (rt.token_length_normalized, "token_length_normalized"),
        (rt.greedy_token_selection, "greedy_token_selection"),
        (rt.unconditional_likelihood_normalized, "unconditional_likelihood"),
        ("unconditional_likelihood_normalized", "unconditional_likelihood"),
    ],
)
def test_the_scoring_travels_by_name(
    runtime: ScriptedRuntime, backend: rt.Backend, method: object, wire: str
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen("x", choices=OPTIONS, choices_method=method)  # type: ignore[arg-type]
        s += rt.select("y", OPTIONS, choices_method=method)  # type: ignore[arg-type]

    program.run(backend=backend)
    assert [select.method for select in runtime.sent(Select)] == [wire, wire]


def test_meta_info_of_a_selection_counts_logprobs_of_zero(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.select("colour", OPTIONS)
        s += rt.select("greedy", OPTIONS, choices_method=rt.greedy_token_selection)
        s += rt.select("un", OPTIONS, choices_method=rt.unconditional_likelihood_normalized)

    state = program.run(backend=backend)
    info = state.get_meta_info("colour")
    assert info["normalized_prompt_logprobs"] == [0.0, -1.0, -1.0]
    assert info["input_token_logprobs"][0] == [(0.0, ord(char), char) for char in "red"]
    assert info["prompt_tokens"] == 0
    assert info["scores"] == [0.0, -1.0, -1.0]
    matrix = state.get_meta_info("greedy")["greedy_logprob_matrix"]
    assert matrix == [[0.0] * 5, [-1.0] * 5, [-1.0] * 5]
    unconditional = state.get_meta_info("un")
    assert unconditional["unconditional_token_logprobs"][0][0] == (0.0, ord("r"), "r")
    assert unconditional["normalized_unconditional_prompt_logprobs"] == [0.0, -1.0, -1.0]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"choices": []},
        {"choices": "abc"},
        {"choices": ["a", 1]},
        {"choices": ["a", ""]},
        {"choices": ["a"], "temperature": 0.7},
        {"choices": ["a"], "choices_method": "best"},
        {"choices": ["a"], "deadline": 0},
    ],
)
def test_a_selection_that_cannot_work_is_refused_at_once(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        rt.select("x", **arguments)  # type: ignore[arg-type]


def test_choices_exclude_constraints() -> None:
    with pytest.raises(InvalidArgument, match="leave out dtype"):
        rt.gen("x", choices=["a"], dtype=int)
