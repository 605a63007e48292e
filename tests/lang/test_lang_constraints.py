"""What ``gen`` and ``select`` ask the runtime for, and what they refuse at once."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from lang.sample_types import Colour, Person, Point
from lang.scripted_runtime import ScriptedRuntime

import radixrt as rt
from radixrt.lang.nodes import Choice, Gen
from radixrt.protocol import Constraint, FieldSampling, Generate, Select, decode, encode


def constraint_of(**arguments: Any) -> Constraint:
    node = rt.gen("x", **arguments)
    assert isinstance(node, Gen)
    assert node.constraint is not None
    return node.constraint


LARK = (
    'start: greeting " " NAME\ngreeting: "Hello" | "Hi" // ::= is not Lark\nNAME: /[A-Z][a-z]+/\n'
)
GBNF = 'root ::= greeting " " [A-Z] [a-z]+\ngreeting ::= "Hello" | "a: b" # start: x\n'


def test_each_argument_becomes_its_kind_of_constraint() -> None:
    assert constraint_of(regex="a+").kind == "regex"
    assert constraint_of(regex=re.compile("a+")).text == "a+"
    assert constraint_of(json_schema='{"type": "null"}').kind == "json_schema"
    assert constraint_of(json_schema={"type": "null"}).text == '{"type":"null"}'
    assert constraint_of(grammar=LARK) == Constraint("grammar", LARK)
    assert constraint_of(grammar=GBNF) == Constraint("gbnf", GBNF)
    assert constraint_of(grammar=GBNF, syntax="ebnf") == Constraint("ebnf", GBNF)
    assert json.loads(constraint_of(type=int).text) == {"type": "integer"}
    assert json.loads(constraint_of(type=None).text) == {"type": "null"}


def test_options_of_a_constraint_travel_with_it() -> None:
    constraint = constraint_of(
        type=Person,
        finish="cut",
        strict=True,
        indent=2,
        any_order=True,
        retries=1,
        reasoning=True,
        jump_forward=False,
        fields={"/name": {"temperature": 0.8, "max_tokens": 5}, "/tags/*": {"top_k": -1}},
    )
    assert constraint == Constraint(
        "json_schema",
        constraint.text,
        finish="cut",
        strict=True,
        indent=2,
        any_order=True,
        retries=1,
        after="</think>",
        fields=(
            FieldSampling("/name", temperature=0.8, max_tokens=5),
            FieldSampling("/tags/*", top_k=0),
        ),
        jump_forward=False,
    )
    assert constraint_of(regex="a", after="\n\n").after == "\n\n"
    defaults = constraint_of(type=Person)
    assert defaults == Constraint("json_schema", constraint.text)


def test_what_was_asked_for_survives_the_wire(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.answer = lambda text, generate: '{"name":"Ada"}'

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "?" + rt.gen("x", type=Person, heal=True, trace=True, fields={"": {"top_p": 0.5}})
        s += rt.select("y", choices=["no", re.compile("[0-9]+"), Colour])

    program.run(backend=backend)
    [generate], [select] = runtime.sent(Generate), runtime.sent(Select)
    assert (generate.heal, generate.trace) == (True, True)
    assert decode(encode(generate)) == generate
    assert decode(encode(select)) == select
    assert [getattr(option, "kind", option) for option in select.options] == [
        "no",
        "regex",
        "json_schema",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type": int, "regex": "a"}, "leave out type"),
        ({"type": int, "dtype": int}, "leave out type"),
        ({"choices": ["a"], "type": int}, "leave out type"),
        ({"choices": ["a"], "regex": "b", "dtype": int}, "leave out dtype and regex"),
        ({"choices": ["a"], "finish": "cut"}, "selected among"),
        ({"grammar": LARK, "json_schema": "{}"}, "leave out grammar"),
        ({"finish": "valid"}, "give a constraint with it"),
        ({"type": int, "finish": "maybe"}, "use valid or cut"),
        ({"type": int, "retries": -1}, "use 0 to 32"),
        ({"type": int, "indent": True}, "use a whole number"),
        ({"type": int, "indent": 99}, "use 0 to 16"),
        ({"type": int, "strict": 1}, "use True or False"),
        ({"type": int, "after": "x", "reasoning": True}, "leave reasoning out"),
        ({"type": int, "after": ""}, "use text such as"),
        ({"type": int, "fields": {"name": {}}}, "JSON pointers"),
        ({"type": int, "fields": {"/name": {"seed": 1}}}, "use temperature, top_p"),
        ({"type": int, "fields": {"/name": {"top_p": 7}}}, r"\(0, 1\]"),
        ({"type": int, "fields": "name"}, "use {"),
        ({"grammar": " "}, "non-empty"),
        ({"grammar": "hello"}, "say how it is written"),
        ({"grammar": "root ::= a\nstart: b"}, "say how it is written"),
        ({"grammar": LARK, "syntax": "yacc"}, "use lark, gbnf or ebnf"),
        ({"syntax": "lark"}, "how grammar= is written"),
        ({"regex": re.compile("a", re.I)}, "write its flags into it"),
        ({"json_schema": "{"}, "it is not JSON"),
        ({"json_schema": {"const": 1j}}, "it is not JSON"),
        ({"tool_choice": "auto"}, "give tools= with it"),
        ({"type": complex}, "use a dataclass"),
        ({"heal": 1}, "use True or False"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_when_it_is_written(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(rt.InvalidArgument, match=message):
        rt.gen("x", **arguments)


def test_a_type_is_read_as_one_object_and_its_text_is_kept(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.answer = lambda text, generate: '{"name":"Ada","age":36}'

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "?" + rt.gen("x", type=Person) + rt.gen("many", type=Person, n=2)

    state = program.run(backend=backend)
    assert state["x"] == Person("Ada", 36)
    assert state["x"] is state["x"]
    assert state.raw("x") == '{"name":"Ada","age":36}'
    assert state["many"] == [Person("Ada", 36)] * 2
    assert len(state.raw("many")) == 2
    assert state.text().endswith(state.raw("x") * 2)


def test_dtype_and_schemas_stay_what_they_were(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.answer = lambda text, generate: "7"

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "?" + rt.gen("number", dtype=int) + rt.gen("text", json_schema={"type": "integer"})

    state = program.run(backend=backend)
    assert (state["number"], state["text"], state.raw("number")) == (7, "7", "7")


def test_reasoning_stays_out_of_the_value_and_in_the_meta_info(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    answers = iter(['{ "so": 1 }</think>\n\n{"x":1}', '{"x":2}'])
    runtime.answer = lambda text, generate: next(answers)

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "?" + rt.gen("a", type=Point, reasoning=True) + rt.gen("b", type=Point, reasoning=True)

    state = program.run(backend=backend)
    assert (state["a"], state["b"]) == (Point(1), Point(2))
    assert state.meta("a")["reasoning"] == '{ "so": 1 }</think>'
    assert state.meta("b")["reasoning"] == ""


def test_a_text_that_was_cut_is_an_error_where_the_value_is_read(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.answer = lambda text, generate: '{"x":'

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "?" + rt.gen("x", type=Point, finish="cut")

    state = program.run(backend=backend)
    with pytest.raises(rt.ProgramError, match=r'gen\("x"\) at .*Point refuses') as caught:
        _ = state["x"]
    assert isinstance(caught.value.cause, rt.ValueRefused)
    assert state.raw("x") == '{"x":'


@pytest.mark.parametrize(
    ("index", "value", "raw"), [(0, "none", "none"), (1, "42", "42"), (2, Colour.RED, '"red"')]
)
def test_a_selection_gives_text_for_text_and_an_instance_for_a_type(
    runtime: ScriptedRuntime, backend: rt.Backend, index: int, value: Any, raw: str
) -> None:
    runtime.choose = lambda text, options: index
    runtime.write_option = lambda option: "42" if option.kind == "regex" else '"red"'

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "?" + rt.select("x", choices=["none", re.compile("[0-9]+"), Colour])

    state = program.run(backend=backend)
    assert (state["x"], state.raw("x")) == (value, raw)
    assert state.text() == f"?{raw}"


def test_a_selection_refuses_types_it_cannot_write() -> None:
    with pytest.raises(rt.InvalidArgument, match="use a dataclass"):
        rt.select("x", choices=["a", complex])
    with pytest.raises(rt.InvalidArgument, match="max_tokens"):
        rt.select("x", choices=[int], max_tokens=0)
    node = rt.gen("x", choices=["a", int])
    assert isinstance(node, Choice)


def test_joined_forks_keep_values_and_texts(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.answer = lambda text, generate: f'{{"x":{text.count("b")}}}'

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "a"
        with s.fork(2) as forks:
            forks += lambda i: "b" * i + rt.gen("x", type=Point)

    state = program.run(backend=backend)
    assert state["x"] == [Point(0), Point(1)]
    assert state.raw("x") == ['{"x":0}', '{"x":1}']


def test_a_journal_keeps_typed_values_as_json(
    runtime: ScriptedRuntime, backend: rt.Backend, tmp_path: Any
) -> None:
    runtime.answer = lambda text, generate: '{"name":"Ada"}'

    @rt.function
    def program(s: rt.ProgramState, question: str) -> Any:
        s += question + rt.gen("x", type=Person)
        return {"found": s["x"], "colours": {Colour.RED}}

    rows = [{"question": "a"}, {"question": "b"}]
    path = tmp_path / "journal"
    program.run_batch(rows, backend=backend, journal=path)
    [first, _] = program.run_batch(rows, backend=backend, journal=path, resume=True)
    assert isinstance(first, rt.FinishedRow)
    assert msgspec.convert(first["x"], Person) == Person("Ada")
    assert first.ret_value["colours"] == ["red"]
