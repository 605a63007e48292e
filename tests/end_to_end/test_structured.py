"""Structured generation from the language to the engine and back, on the shipped model."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import pydantic
import pytest
from lang.sample_types import EXACT, Colour, Even, Person, Point, Tree

import radixrt as rt
from radixrt.lang.reading import result_type

PERSON = (
    "Extract the person as JSON with the keys name, age.\n"
    "Text: Meet Eva Berg, a pilot who is 41 years old.\nJSON:"
)


@pytest.fixture(scope="module")
def backend() -> Iterator[rt.Backend]:
    with rt.Runtime() as runtime:
        yield runtime


@rt.function
def ask(s: rt.ProgramState, prompt: str, **options: Any) -> Any:
    s += prompt + rt.gen("x", **options)
    return s["x"]


@dataclasses.dataclass
class Named:
    name: str
    age: int


# ---------------------------------------------------------------- types


def test_every_type_is_generated_and_read(backend: rt.Backend) -> None:
    types = {str(tp): tp for tp, _, _ in EXACT}

    @rt.function
    def sample(s: rt.ProgramState, name: str, seed: int) -> Any:
        s += "Some value: " + rt.gen("x", type=types[name], max_tokens=120, seed=seed)
        return s["x"]

    rows = [{"name": name, "seed": seed} for name in types for seed in range(2)]
    for row, state in zip(rows, sample.run_batch(rows, backend=backend), strict=True):
        assert isinstance(state, rt.ProgramState)
        schema = json.loads(result_type(types[str(row["name"])]).schema)
        jsonschema.validate(json.loads(state.raw("x")), schema)
        assert state.meta("x")["attempts"] == 1 or "not" in str(schema)


def test_the_budget_closes_a_value_and_a_hopeless_one_is_refused_with_its_need(
    backend: rt.Backend,
) -> None:
    for max_tokens in (12, 20, 40):
        state = ask.run("A tree: ", type=Tree, max_tokens=max_tokens, backend=backend)
        assert isinstance(state["x"], Tree)
        assert state.meta("x")["completion_tokens"] <= max_tokens
    with pytest.raises(rt.ProgramError, match=r"gen\(\"x\"\).*\d+ tokens"):
        ask.run("A person: ", type=Named, max_tokens=2, backend=backend)


def test_a_healed_prompt_gives_what_the_unbroken_one_does(backend: rt.Backend) -> None:
    options = {"type": Named, "spaced": True, "temperature": 0, "max_tokens": 40}
    assert ask.run(PERSON, backend=backend, **options).ret_value == Named("Eva Berg", 41)
    healed = ask.run(f"{PERSON} ", heal=True, backend=backend, **options)
    assert healed.ret_value == Named("Eva Berg", 41)
    assert "JSON: {" in healed.text()


def test_layouts_are_as_python_writes_them(backend: rt.Backend) -> None:
    for options, written in (
        ({}, {"separators": (",", ":")}),
        ({"spaced": True}, {}),
        ({"indent": 2}, {"indent": 2}),
    ):
        state = ask.run(PERSON, type=Named, max_tokens=60, seed=1, backend=backend, **options)
        value = dataclasses.asdict(state["x"])
        assert state.raw("x") == json.dumps(value, ensure_ascii=False, **written)  # type: ignore[arg-type]


def test_any_order_is_read_like_any_other(backend: rt.Backend) -> None:
    states = [
        ask.run("A person: ", type=Person, any_order=True, max_tokens=90, seed=s, backend=backend)
        for s in range(6)
    ]
    assert all(isinstance(state["x"], Person) for state in states)


# ---------------------------------------------------------------- validators


def test_a_refused_value_is_excluded_and_leaves_no_trace(backend: rt.Backend) -> None:
    refused: list[str] = []

    class Picky(pydantic.BaseModel):
        name: str
        age: int

        @pydantic.field_validator("age")
        @classmethod
        def not_the_obvious(cls, age: int) -> int:
            if age == 41:
                refused.append("41")
                raise ValueError("another one")
            return age

    state = ask.run(PERSON, type=Picky, spaced=True, temperature=0, max_tokens=40, backend=backend)
    assert refused == ["41"]
    assert state["x"].age != 41
    assert state.meta("x")["attempts"] == 2
    assert "".join(span.text for span in state.execution.spans()) == PERSON + state.raw("x")


def test_a_value_that_is_never_accepted_is_a_typed_error(backend: rt.Backend) -> None:
    class Never(pydantic.BaseModel):
        number: int

        @pydantic.field_validator("number")
        @classmethod
        def never(cls, number: int) -> int:
            raise ValueError("never")

    with pytest.raises(rt.ProgramError, match="never") as caught:
        ask.run("A number: ", type=Never, retries=1, max_tokens=40, seed=1, backend=backend)
    assert isinstance(caught.value.cause, rt.ValueRefused)


def test_a_schema_that_no_value_satisfies_ends_the_same_way(backend: rt.Backend) -> None:
    schema = {"type": "string", "maxLength": 2, "not": {"type": "string"}}
    with pytest.raises(rt.ProgramError, match="no valid text in 2 attempts") as caught:
        ask.run("Text: ", json_schema=schema, retries=1, max_tokens=20, backend=backend)
    assert isinstance(caught.value.cause, rt.ValueRefused)
    with pytest.raises(rt.ProgramError, match=r"strict=True.*not at /"):
        ask.run("Text: ", json_schema=schema, strict=True, max_tokens=20, backend=backend)


def test_an_even_number_is_found(backend: rt.Backend) -> None:
    state = ask.run("A number: ", type=Even, retries=20, max_tokens=30, seed=3, backend=backend)
    assert state["x"].number % 2 == 0


# ---------------------------------------------------------------- tools


def add_order(customer: str, item: str, quantity: int) -> str:
    """Add an order."""
    return f"{quantity} {item} for {customer}"


ORDER = (
    "Extract the order as JSON with the keys customer, item, quantity.\n"
    "Text: New order from Emma York: 10 green belts, ship to Helsinki.\nJSON:\n"
)


@pytest.mark.parametrize("style", ["hermes", "llama", "mistral"])
def test_a_demanded_call_is_typed_in_every_format(backend: rt.Backend, style: str) -> None:
    state = ask.run(
        ORDER,
        tools=[add_order],
        tool_choice="required",
        tool_format=style,
        parallel=False,
        temperature=0,
        backend=backend,
    )
    [call] = state["x"]
    assert call.call() == "10 belts for Emma York"
    assert state["x"].text == ""
    assert state.meta("x")["tool_format"] == style


def test_an_auto_call_may_be_an_answer(backend: rt.Backend) -> None:
    state = ask.run(ORDER, tools=[add_order], temperature=0, max_tokens=60, backend=backend)
    assert list(state["x"]) == []
    assert state["x"].text == state.raw("x")


def test_tools_and_a_type_go_together(backend: rt.Backend) -> None:
    for seed in range(6):
        state = ask.run(
            PERSON, tools=[add_order], type=Named, seed=seed, max_tokens=120, backend=backend
        )
        assert isinstance(state["x"], Named | rt.ToolCalls)
        if isinstance(state["x"], rt.ToolCalls):
            assert len(state["x"]) >= 1


def test_a_template_without_tools_refuses_their_definitions(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.tools([add_order]) + rt.user("Hi") + rt.assistant(rt.gen("x", max_tokens=4))

    with pytest.raises(rt.ProgramError, match="writes no tools"):
        program.run(backend=backend)


# ---------------------------------------------------------------- choices, streams, traces


def test_choices_may_be_patterns_and_types(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState, tp: Any) -> Any:
        s += PERSON + ' {"name": "Eva Berg", "age":'
        s += rt.select("x", choices=[" null", re.compile(" [0-9]{2}"), tp])
        return s["x"]

    assert program.run(Literal["none"], backend=backend).ret_value == " 41"
    state = program.run(Colour, backend=backend)
    assert state["x"] == " 41"


def test_a_chosen_type_is_an_instance(backend: rt.Backend) -> None:
    class Answer(enum.Enum):
        YES = "yes"
        NO = "no"

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "Answer: " + rt.select("x", choices=[Answer])

    state = program.run(backend=backend)
    assert isinstance(state["x"], Answer)
    assert state.raw("x") == json.dumps(state["x"].value)


def test_a_value_grows_and_is_what_it_grew_to(backend: rt.Backend) -> None:
    state = ask.run(PERSON, type=Named, spaced=True, temperature=0, backend=backend, stream=True)
    seen = []
    for partial in state.partial_iter("x"):
        seen.append((partial.name, partial.age, partial.complete))
    assert seen[-1] == ("Eva Berg", 41, {"", "/name", "/age"})
    assert all("Eva Berg".startswith(name or "") for name, _, _ in seen)
    assert state["x"] == Named("Eva Berg", 41)


def test_every_token_is_explained_and_every_field_scored(backend: rt.Backend) -> None:
    state = ask.run(PERSON, type=Named, spaced=True, temperature=0, trace=True, backend=backend)
    info, explanation = state.meta("x"), state.explain("x")
    assert "".join(token.text for token in explanation) == state.raw("x")
    assert sum(token.kind == "forced" for token in explanation) == info["forced_tokens"]
    assert all(token.allowed == 1 for token in explanation if token.kind == "forced")
    assert {p: f["text"] for p, f in info["fields"].items()} == {
        "/name": '"Eva Berg"',
        "/age": "41",
    }


def test_a_prompt_is_cached_or_computed_whatever_is_forced_after_it(backend: rt.Backend) -> None:
    for _ in range(2):
        info = ask.run(ORDER, type=Person, temperature=0, backend=backend).meta("x")
        assert info["cached_tokens"] + info["computed_tokens"] == info["prompt_tokens"]
    assert info["cached_tokens"] >= info["prompt_tokens"] - 1


def test_fields_may_be_sampled_differently(backend: rt.Backend) -> None:
    fields = {"/age": {"temperature": 8.0}}
    options = {"type": Named, "spaced": True, "temperature": 0, "max_tokens": 60, "fields": fields}
    values = [ask.run(PERSON, seed=s, backend=backend, **options).ret_value for s in range(5)]
    assert {value.name for value in values} == {"Eva Berg"}
    assert len({value.age for value in values}) > 1
    options["fields"] = {"/name": {"max_tokens": 1}}
    state = ask.run(PERSON, backend=backend, **options)
    assert state["x"].age == 41
    assert state["x"].name == "Eva"


# ---------------------------------------------------------------- what users met elsewhere


def test_a_bad_or_a_deep_schema_fails_alone(backend: rt.Backend) -> None:
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(3000):
        deep = {"type": "array", "items": deep}
    bad = [
        '{"type": "nothing"}',
        '{"$ref": "#/nowhere"}',
        '{"type": "string", "pattern": "("}',
    ]
    good = ask.run(PERSON, type=Named, spaced=True, temperature=0, backend=backend).raw("x")
    rows: list[dict[str, Any]] = [{"schema": text} for text in bad]

    @rt.function
    def program(s: rt.ProgramState, schema: str | None = None) -> None:
        s += PERSON
        if schema is None:
            s += rt.gen("x", type=Named, spaced=True, temperature=0)
        else:
            s += rt.gen("x", json_schema=schema, max_tokens=30)

    rows = [row for bad_row in rows for row in (bad_row, {})]
    results = program.run_batch(rows, backend=backend, on_error="keep")
    for row, result in zip(rows, results, strict=True):
        if row:
            assert isinstance(result, rt.ProgramError)
            assert isinstance(result.cause, rt.CallFailed | rt.InvalidArgument)
        else:
            assert isinstance(result, rt.ProgramState)
            assert result.raw("x") == good
    with pytest.raises((rt.ProgramError, rt.InvalidArgument)):
        ask.run(PERSON, json_schema=deep, max_tokens=30, backend=backend)
    assert ask.run(PERSON, type=Named, spaced=True, temperature=0, backend=backend).raw("x") == good


def test_a_neighbour_without_constraint_says_what_it_says_alone(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState, options: dict[str, Any]) -> None:
        s += PERSON + rt.gen("x", temperature=0, max_tokens=24, stop="\n", **options)

    alone = program.run({}, backend=backend).raw("x")
    rows = [{"options": o} for o in ({}, {"type": Named}, {}, {"regex": "[a-z]{30}"}, {})]
    states = program.run_batch(rows, backend=backend)
    assert [states[i].raw("x") for i in (0, 2, 4)] == [alone] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize("prompt", [PERSON, f"{PERSON}<think>"])
def test_reasoning_that_does_or_does_not_come_leaves_the_constraint_in_force(
    backend: rt.Backend, prompt: str
) -> None:
    state = ask.run(
        prompt, type=Named, reasoning=True, max_tokens=80, temperature=0, backend=backend
    )
    assert isinstance(state["x"], Named)
    assert state.meta("x")["reasoning"] in state.raw("x")


def test_a_value_of_any_shape_ends_within_its_budget(backend: rt.Backend) -> None:
    for seed in range(8):
        state = ask.run("Data: ", json_schema={}, max_tokens=30, seed=seed, backend=backend)
        json.loads(state["x"])
        assert not re.search(r"\s{3}", state["x"])


def test_a_selection_is_not_drawn_to_long_options(backend: rt.Backend) -> None:
    long = " negative" + " and very sad indeed" * 4

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "Review: I really love this lamp, the design is superb.\nSentiment:"
        s += rt.select("x", choices=[long, " positive"])

    assert program.run(backend=backend)["x"] == " positive"


def test_points_of_a_batch_are_all_instances(backend: rt.Backend) -> None:
    rows = [{"prompt": f"Point {i}: ", "type": Point, "seed": i} for i in range(16)]

    @rt.function
    def program(s: rt.ProgramState, prompt: str, type: Any, seed: int) -> None:
        s += prompt + rt.gen("x", type=type, max_tokens=40, seed=seed)

    states = program.run_batch(rows, backend=backend)
    assert all(isinstance(state["x"], Point) for state in states)  # type: ignore[index]
