from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.errors import InvalidArgument, Unsupported
from radixrt.protocol import Append, Close, Constraint, Generate, Open, Part


def test_text_and_generations_are_joined_in_order(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState, question: str) -> str:
        s += "Q: " + question + rt.gen("first") + "!"
        s += rt.gen("second")
        return s["first"] + s["second"]

    state = program.run(question="why", backend=backend)
    assert (state["first"], state["second"]) == ("<6>", "<10>")
    assert state.text() == "Q: why<6>!<10>"
    assert state.ret_value == "<6><10>"
    assert "first" in state
    assert "third" not in state
    assert state.variables == ("first", "second")


def test_one_step_is_one_send_and_nothing_is_waited_for(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True
    sends = []

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "a"
        s += "b" + rt.gen("x")
        sends.append(len(runtime.sends))
        s += "c"
        s += rt.gen("y")
        sends.append(len(runtime.sends))
        runtime.stop_holding()

    program.run(backend=backend)
    assert sends == [1, 2]
    first, second = runtime.sends[:2]
    assert [type(message) for message in first] == [Open, Append, Generate]
    assert first[1].parts == (Part("text", "ab"),)
    assert [type(message) for message in second] == [Append, Generate]


def test_text_that_nothing_needs_is_never_sent(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "only text"

    assert program.run(backend=backend).text() == "only text"
    assert runtime.sends == []


def test_a_state_stays_open_while_it_lives_and_can_be_continued(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "a" + rt.gen("x")

    state = program.run(backend=backend)
    state += "b" + rt.gen("y")
    assert state["y"] == "<5>"
    assert runtime.sent(Close) == []
    del state
    runtime.wait_for(lambda: len(runtime.sent(Close)) == 1)
    assert runtime.branches == {}


def test_closing_a_state_keeps_what_it_read(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.user("hi") + rt.assistant(rt.gen("x"))

    state = program.run(backend=backend)
    rendered = state.text()
    state.close()
    runtime.wait_for(lambda: not runtime.branches)
    state.execution._spans = None
    assert state.text() == rendered == "<|user|>hi<|end|><|assistant|><30><|end|>"
    assert state["x"] == "<30>"
    runtime.wait_for(lambda: not runtime.branches)


def test_n_outputs_are_a_list_and_the_branch_continues_with_the_first(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    outputs = iter(["one", "two", "three", "end"])
    runtime.answer = lambda text, generate: next(outputs)

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "a" + rt.gen("x", n=3) + rt.gen("y")

    state = program.run(backend=backend)
    assert state["x"] == ["one", "two", "three"]
    assert state.text() == "aoneend"
    assert [info["completion_tokens"] for info in state.get_meta_info("x")] == [3, 3, 5]


def test_variables_can_be_set_and_scopes_collect_text(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s["given"] = 7
        s += "a"
        with s.var_scope("scope"):
            s += "b" + rt.gen("x")
            with pytest.raises(InvalidArgument, match="still open"):
                s["scope"]
        s += "c"

    state = program.run(backend=backend)
    assert state["given"] == 7
    assert state["scope"] == "b<2>"
    with pytest.raises(InvalidArgument, match="no meta info"):
        state.get_meta_info("given")


def test_an_unknown_variable_names_the_known_ones(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen("answer")

    state = program.run(backend=backend)
    with pytest.raises(InvalidArgument, match=r"anwser.*known: answer"):
        state["anwser"]


@pytest.mark.parametrize("value", [None, 5, ["a"], b"a", "\ud800"])
def test_only_text_and_expressions_can_be_appended(backend: rt.Backend, value: object) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += value  # type: ignore[arg-type]

    with pytest.raises(InvalidArgument, match=r"expression|text"):
        program.run(backend=backend)


def test_expressions_are_values_and_can_be_used_again(backend: rt.Backend) -> None:
    question = "Q" + rt.gen("x")

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += question
        s += question + "!"

    assert program.run(backend=backend).text() == "Q<1>Q<5>!"
    assert len(question.items) == 2


def test_bind_gives_arguments_that_a_call_may_override(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState, a: str, b: str = "-") -> None:
        s += a + b

    bound = program.bind(a="1", b="2")
    assert bound.run(backend=backend).text() == "12"
    assert bound.run(b="3", backend=backend).text() == "13"
    assert program("x", backend=backend).text() == "x-"
    with pytest.raises(InvalidArgument, match="takes: a, b"):
        program.bind(c=1)


def test_a_keyword_of_the_body_goes_to_the_body(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def program(s: rt.ProgramState, stop: str) -> None:
        s += stop + rt.gen("x")

    state = program.run(stop="END", temperature=0.5, backend=backend)
    assert state.text() == "END<3>"
    (generate,) = runtime.sent(Generate)
    assert (generate.sampling.stop, generate.sampling.temperature) == ((), 0.5)


def test_default_backend_is_used_and_an_explicit_one_wins(backend: rt.Backend) -> None:
    other_runtime = ScriptedRuntime()
    other_runtime.answer = lambda text, generate: "other"

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen("x")

    with pytest.raises(InvalidArgument, match="backend"):
        program.run()
    with rt.Backend(other_runtime.transport) as other:
        rt.set_default_backend(other)
        try:
            assert rt.get_default_backend() is other
            assert program.run()["x"] == "other"
            assert program.run(backend=backend)["x"] == "<0>"
        finally:
            rt.shutdown()
        assert rt.get_default_backend() is None
        assert not other.is_open


def test_flush_and_server_info_ask_the_runtime(backend: rt.Backend) -> None:
    assert rt.flush_cache(backend) is True
    info = rt.get_server_info(backend)
    assert info is not None
    assert info["model"]["name"] == "scripted"
    assert info["branches"] == 0
    assert rt.flush_cache() is False
    assert rt.get_server_info() is None


@pytest.mark.parametrize(
    ("dtype", "answer", "value"),
    [(int, "42 ", 42), (float, "-.5", -0.5), (bool, "False", False), (str, '"a b"', "a b")],
)
def test_typed_generations_are_constrained_and_converted(
    runtime: ScriptedRuntime, backend: rt.Backend, dtype: type, answer: str, value: object
) -> None:
    runtime.answer = lambda text, generate: answer

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen("x", dtype=dtype) + rt.gen("y", dtype=dtype.__name__, n=2)

    state = program.run(backend=backend, stop="X")
    assert state["x"] == value
    assert type(state["x"]) is dtype
    assert state["y"] == [value, value]
    generate = runtime.sent(Generate)[0]
    assert isinstance(generate.constraint, Constraint)
    assert generate.constraint.kind == "regex"
    assert generate.sampling.stop[0] == "X"


def test_gen_int_and_gen_string_are_typed_generations(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.answer = lambda text, generate: "7" if not text else '"seven"'

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen_int("n", max_tokens=3, temperature=0.0)
        s += rt.gen_string("t", stop=["\n"])

    state = program.run(backend=backend)
    assert (state["n"], state["t"]) == (7, "seven")
    assert runtime.sent(Generate)[0].sampling.max_tokens == 3


def test_constraints_travel_as_text(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    schema = {"type": "object"}

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen(regex="[ab]+") + rt.gen(json_schema=schema) + rt.gen(json_schema="{}")

    program.run(backend=backend)
    assert [generate.constraint for generate in runtime.sent(Generate)] == [
        Constraint("regex", "[ab]+"),
        Constraint("json_schema", '{"type":"object"}'),
        Constraint("json_schema", "{}"),
    ]


def test_media_and_reasoning_are_clearly_unsupported() -> None:
    for attempt in (
        lambda: rt.image("a.png"),
        lambda: rt.video("a.mp4", 3),
        lambda: rt.separate_reasoning(),
        lambda: rt.function(num_api_spec_tokens=5),
    ):
        with pytest.raises(Unsupported):
            attempt()


def test_a_body_needs_a_state_parameter() -> None:
    with pytest.raises(InvalidArgument, match="first parameter"):
        rt.function(lambda: None)


def test_connect_refuses_what_is_no_endpoint() -> None:
    with pytest.raises(InvalidArgument, match="endpoint"):
        rt.connect("http://localhost:30000")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda s: s.__iadd__(f"Say {rt.gen('x')}"), "write s \\+= .* instead"),
        (lambda s: s + "x", "write s \\+= …"),
    ],
)
def test_what_would_go_unnoticed_is_refused(
    backend: rt.Backend, wrong: Callable[[rt.ProgramState], Any], said: str
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        wrong(s)

    with pytest.raises(InvalidArgument, match=said):
        program.run(backend=backend)


def test_an_argument_that_is_nobodys_is_named_with_what_was_meant(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState, question: str) -> None:
        s += question + rt.gen("x")

    with pytest.raises(InvalidArgument, match=r"temprature=0: .*did you mean temperature"):
        program.run("?", backend=backend, temprature=0)
    with pytest.raises(InvalidArgument, match=r"qestion='\?': program takes: question; did you"):
        program.run(qestion="?", backend=backend)
    state = program.run("?", backend=backend)
    with pytest.raises(AttributeError, match=r"its variable is s\['x'\]"):
        _ = state.x  # type: ignore[attr-defined]
