"""Tools: what the runtime is told of them, and the calls that come back."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest
from lang.sample_types import Colour, Even
from lang.scripted_runtime import ScriptedRuntime

import radixrt as rt
from radixrt.lang.nodes import Gen
from radixrt.lang.toolset import tool_set
from radixrt.protocol import Append, Generate, Output, Part, ToolCall


def book(city: str, day: datetime.date, guests: Annotated[int, msgspec.Meta(ge=1)] = 1) -> str:
    """Book a table in a city.

    The reservation is binding.

    Args:
        city: where it is
        day (date): when, in ISO format
        guests: how many come

    Returns:
        A number.
    """
    return f"{city} {day:%d.%m.} for {guests}"


async def look_up(word: str) -> str:
    """:param word: what to look up"""
    return word.upper()


@dataclass
class Paint:
    """Paint the wall."""

    colour: Colour
    coats: int = 2


class Search(pydantic.BaseModel):
    query: str


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def calling(runtime: ScriptedRuntime, text: str, *calls: tuple[str, str]) -> None:
    """Answer with ``text`` and then these calls, written as the runtime reports them."""

    def decorate(output: Output, generate: Generate) -> Output:
        end = len(text)
        found = []
        for name, arguments in calls:
            found.append(ToolCall(name, arguments, end, end + len(arguments)))
            end += len(arguments)
        return replace(output, tool_calls=tuple(found), tool_format="hermes")

    runtime.answer = lambda prompt, generate: text + "".join(arguments for _, arguments in calls)
    runtime.decorate = decorate


@rt.function
def ask(s: rt.ProgramState, tools: list[Any], **options: Any) -> Any:
    s += "?" + rt.gen("x", tools=tools, **options)
    return s["x"]


def definitions(*tools: Any) -> list[dict[str, Any]]:
    node = rt.gen(tools=tools)
    assert isinstance(node, Gen)
    assert node.constraint is not None
    found: list[dict[str, Any]] = json.loads(node.constraint.text)["tools"]
    return found


def test_a_function_is_described_by_its_signature_and_docstring() -> None:
    [tool] = definitions(book)
    assert tool["name"] == "book"
    assert tool["description"] == "Book a table in a city. The reservation is binding."
    parameters = tool["parameters"]
    assert list(parameters["properties"]) == ["city", "day", "guests"]
    assert parameters["properties"]["city"] == {"type": "string", "description": "where it is"}
    assert parameters["properties"]["guests"]["minimum"] == 1
    assert parameters["required"] == ["city", "day"]
    assert parameters["additionalProperties"] is False
    [tool] = definitions(look_up)
    assert tool["parameters"]["properties"]["word"]["description"] == "what to look up"
    assert tool["description"] == ""


@pytest.mark.parametrize(
    "schema",
    [
        WEATHER,
        WEATHER["function"],
        {"name": "weather", "input_schema": WEATHER["function"]["parameters"]},  # type: ignore[index]
        {"name": "weather", "inputSchema": WEATHER["function"]["parameters"]},  # type: ignore[index]
    ],
)
def test_schemas_are_taken_as_providers_write_them(schema: dict[str, Any]) -> None:
    [tool] = definitions(schema)
    assert tool["name"] == "weather"
    assert tool["parameters"] == WEATHER["function"]["parameters"]  # type: ignore[index]


def test_types_are_tools_with_an_object_at_the_top() -> None:
    paint, search = definitions(Paint, Search)
    assert paint["description"] == "Paint the wall."
    assert list(paint["parameters"]["properties"]) == ["colour", "coats"]
    assert list(search["parameters"]["properties"]) == ["query"]


def test_calls_are_typed_and_callable(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    calling(
        runtime,
        "I will see. ",
        ("book", '{"city":"Rome","day":"2026-03-01"}'),
        ("Paint", '{"colour":"blue"}'),
        ("weather", '{"city":"Rome"}'),
        ("look_up", '{"word":"tea"}'),
    )
    calls = ask.run([book, Paint, WEATHER, look_up], backend=backend).ret_value
    first, second, third, fourth = calls
    assert isinstance(calls, rt.ToolCalls)
    assert calls.text == "I will see."
    assert first.name == "book"
    assert first.arguments == {"city": "Rome", "day": datetime.date(2026, 3, 1)}
    assert first.call() == "Rome 01.03. for 1"
    assert second.call() == second.arguments == Paint(Colour.BLUE)
    assert third.arguments == json.loads(third.text) == {"city": "Rome"}
    with pytest.raises(rt.InvalidArgument, match="call your own function"):
        third.call()
    assert asyncio.run(fourth.call()) == "TEA"


def test_a_model_may_answer_instead(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    calling(runtime, "No need: 4. ")
    calls = ask.run([book], backend=backend).ret_value
    assert list(calls) == []
    assert calls.text == "No need: 4. "


@pytest.mark.parametrize("trigger", ["<tool_call>\n", "[TOOL_CALLS] [", "<|python_tag|>", ""])
def test_the_announcement_of_a_call_is_no_text(
    runtime: ScriptedRuntime, backend: rt.Backend, trigger: str
) -> None:
    calling(runtime, f"I will.\n{trigger}", ("look_up", '{"word":"tea"}'))
    assert ask.run([look_up], backend=backend).ret_value.text == "I will."


def test_a_model_may_answer_under_a_type_instead_of_calling(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    calling(runtime, '{"colour":"red"}')
    assert ask.run([book], type=Paint, backend=backend).ret_value == Paint(Colour.RED)
    [generate] = runtime.sent(Generate)
    assert json.loads(generate.constraint.text)["answer"]["required"] == ["colour"]
    calling(runtime, "", ("look_up", '{"word":"tea"}'))
    [call] = ask.run([look_up], type=Paint, backend=backend).ret_value
    assert call.name == "look_up"
    with pytest.raises(rt.InvalidArgument, match="leave out type"):
        rt.gen(tools=[book], type=Paint, tool_choice="required")


def test_arguments_that_a_type_refuses_are_generated_again(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    numbers = iter([1, 2])

    def decorate(output: Output, generate: Generate) -> Output:
        call = ToolCall("halve", output.text, 0, len(output.text))
        return replace(output, tool_calls=(call,))

    def halve(number: Even) -> int:
        return number.number // 2

    runtime.answer = lambda text, generate: f'{{"number":{{"number":{next(numbers)}}}}}'
    runtime.decorate = decorate
    [call] = ask.run([tool_set([halve]).tools["halve"]], backend=backend).ret_value
    assert call.call() == 1


@pytest.mark.parametrize("choice", [None, "required", "book"])
@pytest.mark.parametrize("parallel", [None, False])
def test_the_choice_travels_with_the_tools(choice: str | None, parallel: bool | None) -> None:
    node = rt.gen(
        tools=[book], tool_choice=choice, parallel=parallel, tool_format="llama", reasoning=True
    )
    assert isinstance(node, Gen)
    assert node.constraint is not None
    given = json.loads(node.constraint.text)
    assert node.constraint.kind == "tools"
    assert node.constraint.after == "</think>"
    assert given["choice"] == (choice or "auto")
    assert given["format"] == "llama"
    assert given["parallel"] is (parallel is not False)


def star(*words: str) -> None: ...


def positional(word: str, /) -> None: ...


def unknown(word: Nowhere) -> None: ...  # type: ignore[name-defined] # noqa: F821


def opaque(word: complex) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tools": []}, "at least one"),
        ({"tools": book}, "give a list"),
        ({"tools": WEATHER}, "give a list"),
        ({"tools": [1]}, "a function, a type or a schema"),
        ({"tools": [lambda x: x]}, "use def"),
        ({"tools": [book, book]}, "two tools have this name"),
        ({"tools": [positional]}, "name its parameter"),
        ({"tools": [unknown]}, "signature cannot be resolved"),
        ({"tools": [opaque]}, "use a dataclass"),
        ({"tools": [int]}, "use a dataclass"),
        ({"tools": [{"name": "a b"}]}, "letters, digits"),
        ({"tools": [{"parameters": {}}]}, "a schema is"),
        ({"tools": [{"name": "a", "parameters": 1}]}, "no JSON schema"),
        ({"tools": [book], "tool_choice": "never"}, "use auto, required, or one of book"),
        ({"tools": [book], "tool_format": "xml"}, "use auto, hermes"),
        ({"tools": [book], "regex": "a"}, "leave out"),
    ],
    ids=str,
)
def test_what_is_no_tool_is_refused_when_it_is_written(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(rt.InvalidArgument, match=message):
        rt.gen("x", **arguments)


def test_star_arguments_are_not_the_models_to_give() -> None:
    [tool] = definitions(star)
    assert tool["parameters"]["properties"] == {}


def test_definitions_and_results_enter_the_prompt_as_the_template_wants_them(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.tools([book, Paint])
        s += rt.user("Book!")
        s += rt.tool({"day": datetime.date(2026, 3, 1), "wall": Paint(Colour.RED)})
        s += rt.tool("as it is") + rt.tool(Even(number=2)) + rt.tool(object)
        s += rt.assistant(rt.gen("x"))

    state = program.run(backend=backend)
    [append] = runtime.sent(Append)
    first, *others = append.parts
    assert first.kind == "tools"
    tools = [definition["function"] for definition in json.loads(first.text)]
    assert [tool["name"] for tool in tools] == ["book", "Paint"]
    assert tools[0]["parameters"]["properties"]["day"] == {
        "type": "string",
        "format": "date",
        "description": "when, in ISO format",
    }
    assert Part("role_begin", "tool") in others
    contents = [m["content"] for m in state.messages() if m["role"] == "tool"]
    assert contents[:3] == [
        '{"day":"2026-03-01","wall":{"colour":"red","coats":2}}',
        "as it is",
        '{"number":2}',
    ]
    assert "object" in contents[3]


def test_tools_are_declared_again_where_a_closed_state_is_written_out(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.tools([book])
        with s.fork(1) as forks:
            forks += rt.user("hi")
            forks.join("concate_and_append")
        s += rt.assistant(rt.gen("x"))

    state = program.run(backend=backend)
    state.close()
    state.text()
    declared = [m for m in runtime.sent(Append) if m.parts[0].kind == "tools"]
    assert len(declared) == 2


Way = Literal["left", "right"]


def test_a_bound_method_and_a_callable_object_are_tools() -> None:
    class Robot:
        def turn(self, way: Way, times: int = 1) -> str:
            """Turn."""
            return way * times

        def __call__(self, speed: float) -> float:
            return speed

    turn, robot = definitions(Robot().turn, Robot())
    assert turn["parameters"]["properties"]["way"] == {"enum": ["left", "right"]}
    assert robot["name"] == "Robot"
    assert list(robot["parameters"]["properties"]) == ["speed"]


def test_a_tool_is_anything_that_can_be_called() -> None:
    call: Callable[..., Any] = tool_set([book]).tools["book"].function or book
    assert call is book
