"""Typed values while they are generated."""

from __future__ import annotations

import asyncio
import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lang.sample_types import EXACT, OWN_SAY, Circle, Colour, Even, Order, Person, Square, Tree
from lang.scripted_runtime import ScriptedRuntime

import radixrt as rt
from radixrt.lang.partial import PartialJson
from radixrt.lang.partial_value import Partial
from radixrt.lang.reading import result_type


def grown(text: str, tp: Any) -> Partial:
    parser = PartialJson()
    parser.feed(text)
    return Partial(parser.root, tp)


def test_complete_fields_have_their_types_and_are_marked() -> None:
    partial = grown('{"Item": "pen", "due": "2026-03-01", "price": 1', Order)
    assert partial.item == "pen"
    assert partial.due == datetime.date(2026, 3, 1)
    assert partial.price is None
    assert partial["Item"] == partial["item"]
    assert partial.complete == {"/Item", "/due"}
    assert (partial.is_complete("due"), partial.is_complete("price")) == (True, False)
    assert not partial.is_complete()
    with pytest.raises(AttributeError, match="Order has no field 'colour'"):
        _ = partial.colour


def test_what_is_inside_grows_too() -> None:
    partial = grown('{"value": 1, "children": [{"value": 2, "children": []}, {"value": 3,', Tree)
    first, second = partial.children
    assert first == Tree(2)
    assert isinstance(second, Partial)
    assert (second.value, second.children) == (3, None)
    assert partial.children is partial.children
    assert len(partial.children) == 2
    assert partial.children[-1].value == 3
    assert repr(partial) == (
        "Partial({'value': 1, 'children': [{'value': 2, 'children': []}, {'value': 3}]}, …)"
    )


def test_of_a_union_it_is_the_member_that_the_keys_fit() -> None:
    partial = grown('[{"side": 1, "colour": "blue", ', list[Circle | Square])
    assert partial[0].colour is Colour.BLUE
    assert grown('{"name": "Ad', Person | None).name == "Ad"


def test_text_shows_as_it_comes_and_null_is_not_nothing() -> None:
    assert grown('{"name": "Ad', Person).name == "Ad"
    partial = grown('{"due": null, ', Order)
    assert (partial.due, partial.is_complete("due"), "due" in partial) == (None, True, True)
    assert ("price" in partial, partial.is_complete("price")) == (False, False)


@given(st.sampled_from([*EXACT, *OWN_SAY]), st.data())
def test_whatever_is_complete_is_as_in_the_end(
    case: tuple[Any, Any, Any], data: st.DataObject
) -> None:
    tp, written, meant = case
    text = json.dumps(written)
    whole = grown(text + " ", tp)
    assert whole.is_complete()
    partial = grown(text[: data.draw(st.integers(0, len(text)))], tp)
    assert partial.complete <= whole.complete
    if isinstance(written, dict):
        for key in partial:
            if partial.is_complete(key):
                assert partial[key] == whole[key]
    elif whole.is_complete():
        assert result_type(tp).read_parsed(whole.plain) == meant


TEXT = '{"name":"Ada","age":36,"tags":["x"]}'


@rt.function
def ask(s: rt.ProgramState, tp: Any = Person, **options: Any) -> None:
    s += "?" + rt.gen("x", type=tp, **options)


def streamed(runtime: ScriptedRuntime, backend: rt.Backend, **options: Any) -> rt.ProgramState:
    runtime.is_holding = True
    state = ask.run(backend=backend, stream=True, **options)
    runtime.wait_for(lambda: bool(runtime.held))
    return state


def test_a_value_grows_while_it_is_streamed(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.answer = lambda text, generate: TEXT
    state = streamed(runtime, backend)
    [call] = runtime.held
    growing = state.partial_iter("x")
    runtime.chunk(call, TEXT[:11])
    first = next(growing)
    assert (first.name, first.age) == ("Ad", None)
    runtime.chunk(call, TEXT[11:24])
    second = next(growing)
    assert second is first
    assert (second.name, second.age, second.complete) == ("Ada", 36, {"/name", "/age"})
    runtime.stop_holding()
    [last] = growing
    assert last.is_complete()
    assert state["x"] == Person("Ada", 36, ["x"])


def test_a_value_that_was_not_streamed_comes_whole(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.answer = lambda text, generate: TEXT
    [whole] = ask.run(backend=backend).partial_iter("x")
    assert whole.plain == json.loads(TEXT)


def test_a_refused_value_begins_anew(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    answers = iter(['{"number":1}', '{"number":2}'])
    runtime.answer = lambda text, generate: next(answers)
    state = streamed(runtime, backend, tp=Even)
    [call] = runtime.held
    growing = state.partial_iter("x")
    runtime.chunk(call, '{"number":1}')
    first = next(growing)
    assert first.number == 1
    runtime.stop_holding()
    *_, last = growing
    assert last is not first
    assert last.number == 2
    assert state["x"] == Even(number=2)


def test_reasoning_is_no_part_of_what_grows(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.answer = lambda text, generate: '{"so"</think>' + TEXT
    state = streamed(runtime, backend, reasoning=True)
    [call] = runtime.held
    growing = state.partial_iter("x")
    runtime.chunk(call, '{"so"</thi')
    runtime.chunk(call, "nk>" + TEXT[:8])
    runtime.chunk(call, TEXT[8:14])
    assert [next(growing).name for _ in range(1)] == ["Ada"]
    runtime.stop_holding()
    *_, last = growing
    assert last.is_complete()


def test_it_grows_in_an_event_loop(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.answer = lambda text, generate: TEXT

    async def follow() -> list[bool]:
        state = streamed(runtime, backend)
        [call] = runtime.held
        runtime.chunk(call, TEXT[:20])
        seen = []
        async for partial in state.partial_async_iter("x"):
            seen.append(partial.is_complete())
            if not partial.is_complete():
                runtime.stop_holding()
        return seen

    assert asyncio.run(follow()) == [False, True]


def test_closing_the_iterator_ends_the_generation(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    state = streamed(runtime, backend)
    [call] = runtime.held
    growing = state.partial_iter("x")
    runtime.chunk(call, '{"name":')
    next(growing)
    growing.close()
    runtime.wait_for(lambda: call in runtime.cancelled)


def test_a_failure_is_raised_where_it_is_followed(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    def fail(text: str, generate: Any) -> str:
        raise rt.Overloaded("full")

    runtime.answer = fail
    state = ask.run(backend=backend, stream=True)
    with pytest.raises(rt.ProgramError, match="full"):
        list(state.partial_iter("x"))


def test_only_what_has_a_type_or_a_schema_grows(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "?" + rt.gen("free") + rt.select("chosen", choices=["a"])
        s["set"] = 1

    state = program.run(backend=backend)
    for name in ("chosen", "set"):
        with pytest.raises(rt.InvalidArgument, match="not generated"):
            next(state.partial_iter(name))
    with pytest.raises(rt.InvalidArgument, match="use text_iter"):
        next(state.partial_iter("free"))
