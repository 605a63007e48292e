from __future__ import annotations

import pytest
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.errors import InvalidArgument
from radixrt.protocol import Append, Part


def test_the_three_ways_to_write_a_message_are_one(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def calls(s: rt.ProgramState) -> None:
        s += rt.system("be brief")
        s += rt.user("hi")
        s += rt.assistant(rt.gen("x"))

    @rt.function
    def methods(s: rt.ProgramState) -> None:
        s.system("be brief")
        s.user("hi")
        s.assistant(rt.gen("x"))

    @rt.function
    def begin_end(s: rt.ProgramState) -> None:
        s += rt.system_begin() + "be brief" + rt.system_end()
        s += rt.user_begin() + "hi" + rt.user_end()
        s += rt.assistant_begin() + rt.gen("x") + rt.assistant_end()

    @rt.function
    def contexts(s: rt.ProgramState) -> None:
        with s.system():
            s += "be brief"
        with s.user():
            s += "h"
            s += "i"
        with s.assistant():
            s += rt.gen("x")

    states = [program.run(backend=backend) for program in (calls, methods, begin_end, contexts)]
    assert len({state.text() for state in states}) == 1
    assert states[0].messages() == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": states[0]["x"]},
    ]
    first = runtime.sent(Append)[0].parts
    assert first == (
        Part("role_begin", "system"),
        Part("text", "be brief"),
        Part("role_end", "system"),
        Part("role_begin", "user"),
        Part("text", "hi"),
        Part("role_end", "user"),
        Part("role_begin", "assistant"),
    )


def test_messages_have_no_open_message_and_an_empty_one(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.user()
        s += rt.assistant_begin() + "so far"

    assert program.run(backend=backend).messages() == [{"role": "user", "content": ""}]


def test_nested_and_unmatched_roles_are_refused(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        with pytest.raises(InvalidArgument, match="open is: no message"):
            s += rt.user_end()
        s += rt.user_begin()
        with pytest.raises(InvalidArgument, match="close the user message"):
            s += rt.assistant("a")
        with pytest.raises(InvalidArgument, match="open is: user"):
            s += rt.assistant_end()
        s += rt.user_end()

    program.run(backend=backend)


def test_the_text_is_rendered_once_until_something_is_added(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.user("a")

    state = program.run(backend=backend)
    assert state.text() == state.text() == "<|user|>a<|end|>"
    assert len(runtime.sends) == 1
    state += rt.user("b")
    assert state.text() == "<|user|>a<|end|><|user|>b<|end|>"
