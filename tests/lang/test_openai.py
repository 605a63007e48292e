"""Programs on endpoints of OpenAI's API: the same language, over a scripted server."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lang.scripted_openai import Refusal, Said, ScriptedOpenAI, echo, prompt_of

import radixrt as rt
from radixrt.lang.openai.engine import Engine
from radixrt.lang.openai.json_layout import JsonLayout
from radixrt.lang.openai.settings import settings
from radixrt.protocol import Append, Cancel, Close, Failed, Generate, Hello, Open, Part, Stats

AT_ONCE = {"retry-after": "0"}


@pytest.fixture
def server() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI().serving() as server:
        yield server


@pytest.fixture
def backend(server: ScriptedOpenAI) -> Iterator[rt.OpenAI]:
    with rt.OpenAI(server.url, api_key="key") as backend:
        yield backend


def on(server: ScriptedOpenAI, **options: Any) -> rt.OpenAI:
    return rt.OpenAI(server.url, api_key="key", **options)


@rt.function
def plain(s, **options):
    s += "Once" + rt.gen("x", **options)


@rt.function
def talk(s, **options):
    s += rt.system("Be brief.")
    s += rt.user("Hello?")
    s += rt.assistant(rt.gen("x", **options))


def failure(program: rt.Function, backend: rt.Backend, **options: Any) -> BaseException:
    with pytest.raises(rt.ProgramError) as caught:
        program.run(backend=backend, **options).sync()
    return caught.value.cause


# ---------------------------------------------------------------- texts and messages


def test_a_program_without_roles_goes_to_completions(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    @rt.function
    def two(s):
        s += "Once" + rt.gen("a", max_tokens=9) + " and" + rt.gen("b", stop="\n")

    state = two.run(backend=backend)
    assert state["a"] == "<4>"
    assert state["b"] == f"<{len('Once<4> and')}>"
    assert state.text() == f"Once<4> and{state['b']}"
    assert server.paths == ["/v1/completions"] * 2
    assert server.bodies[0]["prompt"] == "Once"
    assert server.bodies[0]["max_tokens"] == 9
    assert server.bodies[1]["prompt"] == "Once<4> and"
    assert server.bodies[1]["stop"] == ["\n"]
    assert server.requests[0][2]["authorization"] == "Bearer key"


def test_roles_go_to_the_chat_endpoint_as_messages(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    @rt.function
    def turns(s):
        s += rt.system("Be brief.")
        for number in range(2):
            s += rt.user(f"Question {number}")
            s += rt.assistant(rt.gen(f"a{number}"))

    state = turns.run(backend=backend)
    assert server.paths == ["/v1/chat/completions"] * 2
    assert server.bodies[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Question 0"},
        {"role": "assistant", "content": state["a0"]},
        {"role": "user", "content": "Question 1"},
    ]
    assert state.messages()[-1] == {"role": "assistant", "content": state["a1"]}


def test_a_fork_is_a_copy_and_its_branches_do_not_meet(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    server.answer = lambda path, body: Said([prompt_of(body)[-1].upper()])

    @rt.function
    def branching(s):
        s += "start" + rt.gen("first")
        forks = s.fork(3)
        for fork, letter in zip(forks, "abc", strict=True):
            fork += letter + rt.gen("own")
        forks.join()

    state = branching.run(backend=backend)
    assert state["own"] == ["A", "B", "C"]
    prompts = sorted(body["prompt"] for body in server.bodies)
    assert prompts == ["start", "startTa", "startTb", "startTc"]


def test_modes_choose_the_endpoint(server: ScriptedOpenAI) -> None:
    with on(server, mode="chat") as backend:
        plain.run(backend=backend)
    with on(server, mode="completions") as backend:
        talk.run(backend=backend)
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Once"}]
    assert server.bodies[1]["prompt"] == "System: Be brief.\nUser: Hello?\nAssistant:"


def test_a_message_that_has_begun_is_continued_where_the_server_can(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    @rt.function
    def begun(s):
        s += rt.user("Hi")
        s += rt.assistant("Well, " + rt.gen("x"))

    cause = failure(begun, backend)
    assert isinstance(cause, rt.Unsupported)
    assert "dialect" in str(cause)
    with on(server, dialect="vllm") as vllm:
        begun.run(backend=vllm)
    assert server.bodies[-1]["continue_final_message"] is True
    assert server.bodies[-1]["messages"][-1] == {"role": "assistant", "content": "Well, "}


def test_a_chat_refuses_text_outside_of_messages_and_words_for_the_user(
    backend: rt.OpenAI,
) -> None:
    @rt.function
    def outside(s):
        s += rt.user("Hi") + "stray"
        s += rt.assistant(rt.gen("x"))

    @rt.function
    def for_user(s):
        s += rt.user(rt.gen("x"))

    for program, word in ((outside, "stray"), (for_user, "user message")):
        cause = failure(program, backend)
        assert isinstance(cause, rt.Unsupported)
        assert word in str(cause)


# ---------------------------------------------------------------- sampling


def test_sampling_is_mapped_and_usage_counts_what_was_cached(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    server.answer = lambda path, body: Said(["ok"], cached_tokens=3)
    state = plain.run(
        backend=backend,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        frequency_penalty=0.1,
        logit_bias={5: -1.0},
        return_logprob=True,
        top_logprobs_num=1,
    )
    body = server.bodies[0]
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.5, 0.9, 7)
    assert body["logit_bias"] == {"5": -1.0}
    meta = state.get_meta_info("x")
    assert (meta["prompt_tokens"], meta["cached_tokens"], meta["computed_tokens"]) == (4, 3, 1)
    assert meta["completion_tokens"] == 2
    assert [entry[2] for entry in meta["output_token_logprobs"]] == ["o", "k"]
    assert meta["output_top_logprobs"][0][0][0] == -0.5


def test_the_extensions_of_a_dialect_are_sent_there_and_refused_elsewhere(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    server.owner = "vllm"
    options = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2}
    with on(server) as vllm:  # the dialect is told by the list of models
        plain.run(backend=vllm, **options)
    assert options.items() <= server.bodies[0].items()
    for name, value in options.items():
        cause = failure(plain, backend, **{name: value})
        assert isinstance(cause, rt.Unsupported)
        assert name in str(cause)


def test_an_endpoint_that_gives_fewer_outputs_is_asked_again(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    server.answer = lambda path, body: Said([f"answer {len(server.requests)}"])
    state = plain.run(backend=backend, n=3, seed=1)
    assert state["x"] == ["answer 1", "answer 2", "answer 3"]
    assert [body["seed"] for body in server.bodies] == [1, 2, 3]
    assert [body.get("n") for body in server.bodies] == [3, 2, None]


def test_stops_beyond_the_endpoints_are_looked_for_here(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    server.answer = lambda path, body: Said(["one two 3 four"])
    state = plain.run(backend=backend, stop_regex="[0-9]", return_logprob=True)
    assert state["x"] == "one two "
    assert state.get_meta_info("x")["finish_reason"] == {"type": "stop", "matched": "[0-9]"}
    assert len(state.get_meta_info("x")["output_token_logprobs"]) == len("one two ")
    state = plain.run(backend=backend, stop=["a", "b", "c", "d", "two"])
    assert server.bodies[-1]["stop"] == ["a", "b", "c", "d"]
    assert state["x"] == "one "


@pytest.mark.parametrize("program", [plain, talk])
def test_a_stream_has_the_text_in_pieces(
    server: ScriptedOpenAI, backend: rt.OpenAI, program: rt.Function
) -> None:
    server.answer = lambda path, body: Said(["in pieces"], cached_tokens=2)
    state = program.run(backend=backend, stream=True, return_logprob=True)
    pieces = list(state.text_iter("x"))
    assert "".join(pieces) == state["x"] == "in pieces"
    assert server.bodies[0]["stream"] is True
    assert state.get_meta_info("x")["cached_tokens"] == 2
    assert len(state.get_meta_info("x")["output_token_logprobs"]) == len("in pieces")


# ---------------------------------------------------------------- constraints


@dataclass
class Person:
    name: str
    age: int


def test_a_type_becomes_a_response_format(server: ScriptedOpenAI, backend: rt.OpenAI) -> None:
    server.answer = lambda path, body: Said(['{ "name": "Ada",\n "age": 36 }'])
    state = talk.run(backend=backend, type=Person)
    assert state["x"] == Person("Ada", 36)
    assert state.raw("x") == '{"name":"Ada","age":36}'
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert set(schema["properties"]) == {"name", "age"}
    assert talk.run(backend=backend, type=Person, spaced=True).raw("x") == (
        '{"name": "Ada", "age": 36}'
    )


@dataclass
class Optional:
    name: str
    age: int | None = None


@pytest.mark.parametrize(
    ("options", "strict"),
    [
        ({"type": Person}, True),
        ({"type": list[Person]}, True),
        ({"regex": "[a-z]+"}, True),
        ({"type": Optional}, False),  # a property that may be left out
        ({"type": Optional, "strict": True}, True),
        ({"json_schema": {"type": "object", "properties": {"a": {"type": "string"}}}}, False),
        ({"json_schema": {"type": "string", "minLength": 3}}, False),
    ],
)
def test_strict_mode_is_asked_for_where_a_schema_keeps_to_it(
    server: ScriptedOpenAI, backend: rt.OpenAI, options: dict[str, Any], strict: bool
) -> None:
    server.answer = lambda path, body: Refusal(400)
    failure(talk, backend, **options)
    assert server.bodies[0]["response_format"]["json_schema"]["strict"] is strict


def test_values_that_are_no_objects_are_wrapped_in_one(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    server.answer = lambda path, body: Said(['{"value": "positive"}'])
    assert talk.run(backend=backend, type=Literal["positive", "negative"])["x"] == "positive"
    assert talk.run(backend=backend, regex="[a-z]+")["x"] == "positive"
    server.answer = lambda path, body: Said(['{"value": [1, 2]}'])
    assert talk.run(backend=backend, type=list[int])["x"] == [1, 2]


@pytest.mark.parametrize(
    ("dialect", "options", "sent"),
    [
        ("vllm", {"regex": "[0-9]+"}, {"structured_outputs": {"regex": "[0-9]+"}}),
        ("vllm", {"json_schema": {}}, {"structured_outputs": {"json": {}}}),
        ("sglang", {"regex": "[0-9]+"}, {"regex": "[0-9]+"}),
        ("sglang", {"json_schema": {}}, {"json_schema": "{}"}),
        ("sglang", {"grammar": 'root ::= "4"'}, {"ebnf": 'root ::= "4"'}),
    ],
)
def test_a_constraint_is_said_in_the_servers_words(
    server: ScriptedOpenAI, dialect: Any, options: dict[str, Any], sent: dict[str, Any]
) -> None:
    server.answer = lambda path, body: Said(["42"])
    with on(server, dialect=dialect) as backend:
        assert plain.run(backend=backend, **options)["x"] == "42"
    assert sent.items() <= server.bodies[0].items()


def test_what_nothing_enforces_is_checked_and_generated_again(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    answers = iter(["no number", "42 is it"])
    server.answer = lambda path, body: Said([next(answers)])
    state = plain.run(backend=backend, regex="[0-9]+", temperature=0)
    assert state["x"] == "42"
    assert state.get_meta_info("x")["attempts"] == 2
    assert state.text() == "Once42"
    assert [body["temperature"] for body in server.bodies] == [0, 0.7]


@pytest.mark.parametrize(
    "options", [{"regex": "[0-9]+"}, {"json_schema": {"type": "object"}}, {"type": Person}]
)
def test_a_constraint_that_something_on_the_way_dropped_is_noticed(
    server: ScriptedOpenAI, options: dict[str, Any]
) -> None:
    server.answer = lambda path, body: Said(["free text"])
    with on(server, dialect="radixrt") as backend:
        assert isinstance(failure(plain, backend, retries=0, **options), rt.ValueRefused)


def test_a_pattern_that_nobody_can_check_is_refused(backend: rt.OpenAI) -> None:
    cause = failure(plain, backend, regex="[[:digit:]]+")
    assert isinstance(cause, rt.Unsupported)


def test_a_value_that_never_fits_is_refused(server: ScriptedOpenAI, backend: rt.OpenAI) -> None:
    server.answer = lambda path, body: Said(['{"name": "Ada"}'])
    cause = failure(plain, backend, type=Person, retries=1)
    assert isinstance(cause, rt.ValueRefused)
    assert "age" in str(cause)
    assert len(server.requests) == 2


def test_a_validator_of_the_types_own_refuses_and_the_branch_holds_what_it_accepts(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    @dataclass
    class Even:
        n: int

        def __post_init__(self) -> None:
            if self.n % 2:
                raise ValueError("odd")

    answers = iter(['{"n": 3}', '{"n": 3}', '{"n": 4}'])
    server.answer = lambda path, body: Said([next(answers)])
    state = talk.run(backend=backend, type=Even)
    assert state["x"] == Even(4)
    assert [m["content"] for m in state.messages()][-1] == '{"n":4}'


def test_a_grammar_is_refused_where_it_cannot_be_said(backend: rt.OpenAI) -> None:
    cause = failure(talk, backend, grammar='start: "a"')
    assert isinstance(cause, rt.Unsupported)
    assert "dialect" in str(cause)


def test_an_object_grows_while_it_is_streamed(server: ScriptedOpenAI) -> None:
    server.answer = lambda path, body: Said(['{"name": "Ada", "age": 36}'])
    server.gate.clear()
    with on(server, dialect="vllm") as backend:
        state = talk.run(backend=backend, type=Person, stream=True)
        partials = state.partial_iter("x")
        # The value is whole, and the server has not said so yet.
        assert any(partial.is_complete("name") for partial in partials)
        server.gate.set()
        assert "".join(state.text_iter("x")) == state.raw("x") == '{"name":"Ada","age":36}'
        partials.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(json_values, st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 7))
def test_json_is_laid_out_as_python_writes_it(
    value: Any, indent: int | None, spaced: bool, size: int
) -> None:
    """Whatever whitespace it came with, and however it was cut into pieces."""
    text = json.dumps(value, indent=3)
    layout = JsonLayout(indent=indent, spaced=spaced)
    laid_out = "".join(layout.feed(text[at : at + size]) for at in range(0, len(text), size))
    separators = None if spaced or indent is not None else (",", ":")
    assert laid_out == json.dumps(value, indent=indent, separators=separators)


# ---------------------------------------------------------------- tools


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_tools_are_called_and_their_results_sent_back(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    said = iter([Said([""], "tool_calls", [("add", '{"a": 1, "b": 2}')]), Said(["It is 3."])])
    server.answer = lambda path, body: next(said)

    @rt.function
    def agent(s):
        s += rt.tools([add])
        s += rt.user("1 + 2?")
        s += rt.assistant(rt.gen("calls", tools=[add]))
        for call in s["calls"]:
            s += rt.tool(call.call())
        s += rt.assistant(rt.gen("answer"))

    state = agent.run(backend=backend)
    assert state["calls"][0].arguments == {"a": 1, "b": 2}
    assert state["answer"] == "It is 3."
    first, second = server.bodies
    assert first["tools"][0]["function"]["name"] == "add"
    assert first["tool_choice"] == "auto"
    call, result = second["messages"][1:]
    assert call["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1, "b": 2}'}
    assert result["content"] == "3"
    assert result["tool_call_id"] == call["tool_calls"][0]["id"]
    assert second["tool_choice"] == "none"


def test_calls_that_do_not_fit_their_tool_are_refused(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    for call in (("add", '{"a": 1}'), ("sub", "{}"), ("add", "[")):
        server.answer = lambda path, body, call=call: Said([""], "tool_calls", [call])
        cause = failure(talk, backend, tools=[add], retries=0)
        assert isinstance(cause, rt.ValueRefused)
    server.answer = lambda path, body: Said(["no call"])
    cause = failure(talk, backend, tools=[add], tool_choice="add", retries=0)
    assert isinstance(cause, rt.ValueRefused)
    assert isinstance(failure(plain, backend, tools=[add]), rt.Unsupported)


# ---------------------------------------------------------------- select


@rt.function
def mood(s, **options):
    s += "Mood:" + rt.select("mood", choices=[" good", " bad"], **options)


def favouring(word: str) -> Any:
    def answer(path: str, body: dict[str, Any]) -> Any:
        return echo(body["prompt"], lambda text, at: -0.1 if word in text else -2.0)

    return answer


def test_select_goes_by_logprobs_where_the_endpoint_tells_them(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    server.answer = favouring("bad")
    state = mood.run(backend=backend)
    assert state["mood"] == " bad"
    assert len(server.requests) == 1  # all options at once
    meta = state.get_meta_info("mood")
    assert meta["normalized_prompt_logprobs"] == pytest.approx([-2.0, -0.1])
    assert [entry[2] for entry in meta["input_token_logprobs"][1]] == list(" bad")


def test_select_is_a_generation_where_it_does_not(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    def answer(path: str, body: dict[str, Any]) -> Any:
        if body.get("echo"):
            return Refusal(400, {"message": "echo is not supported"})
        return Said(["bad, I would say"])

    server.answer = answer
    assert mood.run(backend=backend)["mood"] == " bad"
    assert mood.run(backend=backend)["mood"] == " bad"
    assert [body.get("echo", False) for body in server.bodies] == [True, False, False]
    cause = failure(mood, backend, choices_method="unconditional_likelihood_normalized")
    assert isinstance(cause, rt.Unsupported)
    with on(server, select="logprobs") as strict:
        assert isinstance(failure(mood, strict), rt.CallFailed)


def test_select_in_a_chat_is_scored_by_tokens_where_the_server_tokenizes(
    server: ScriptedOpenAI,
) -> None:
    tokenized: list[dict[str, Any]] = []

    def answer(path: str, body: dict[str, Any]) -> Any:
        if path == "/tokenize":
            tokenized.append(body)
            return {"tokens": list(map(ord, body.get("prompt", "chat")))}
        texts = ["".join(map(chr, prompt)) for prompt in body["prompt"]]
        return echo(texts, lambda text, at: -0.1 if "good" in text else -1.0)

    server.answer = answer

    @rt.function
    def chosen(s):
        s += rt.user("How is it?")
        s += rt.assistant(rt.select("mood", choices=["good", "bad"]))

    with on(server, dialect="vllm") as backend:
        assert chosen.run(backend=backend)["mood"] == "good"
    assert tokenized[0]["messages"] == [{"role": "user", "content": "How is it?"}]
    assert server.bodies[-1]["prompt"] == [list(map(ord, "chat" + w)) for w in ("good", "bad")]


def test_the_prompts_own_logprobs_are_asked_for_apart(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    def answer(path: str, body: dict[str, Any]) -> Any:
        if body.get("echo"):
            return echo(body["prompt"], lambda text, at: -float(at))
        return Said(["!"])

    server.answer = answer
    state = plain.run(backend=backend, return_logprob=True, logprob_start_len=1)
    entries = state.get_meta_info("x")["input_token_logprobs"]
    assert [(entry[0], entry[2]) for entry in entries] == [(-1.0, "n"), (-2.0, "c"), (-3.0, "e")]


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("refusal", "error", "requests"),
    [
        (Refusal(401), rt.Unauthorized, 1),
        (Refusal(400), rt.CallFailed, 1),
        (Refusal(400, {"message": "x", "code": "context_length_exceeded"}), rt.PromptTooLong, 1),
        (Refusal(404), rt.Unsupported, 1),
        (Refusal(429, headers=AT_ONCE), rt.Overloaded, 3),
        (Refusal(429, {"message": "no money", "code": "insufficient_quota"}), rt.Overloaded, 1),
        (Refusal(429, headers={"retry-after": "86400"}), rt.Overloaded, 1),
        (Refusal(503, headers=AT_ONCE), rt.Overloaded, 3),
        (Refusal(500, headers=AT_ONCE), rt.EngineFault, 3),
        (Refusal(500, "not an object", AT_ONCE), rt.EngineFault, 3),
    ],
)
def test_a_refusal_has_its_type_and_is_repeated_when_that_can_help(
    server: ScriptedOpenAI,
    backend: rt.OpenAI,
    refusal: Refusal,
    error: type[rt.CallFailed],
    requests: int,
) -> None:
    server.answer = lambda path, body: refusal
    cause = failure(plain, backend)
    assert isinstance(cause, error)
    assert len(server.requests) == requests
    assert "key" not in str(cause).replace("api_key", "").replace("API_KEY", "")


def test_a_request_that_succeeds_the_second_time_is_one_result(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    answers = iter([Refusal(429, headers=AT_ONCE), Said(["there"])])
    server.answer = lambda path, body: next(answers)
    assert plain.run(backend=backend)["x"] == "there"
    assert backend.get_server_info()["retries"] == 1


@pytest.mark.parametrize(
    "choices", [None, [], [7], "no", [{}], [{"text": 7}], [{"message": {"content": [7]}}]]
)
def test_an_answer_of_another_form_is_an_error(
    server: ScriptedOpenAI, backend: rt.OpenAI, choices: Any
) -> None:
    server.answer = lambda path, body: {"choices": choices}
    assert isinstance(failure(plain, backend), rt.EngineFault)


def test_a_stream_that_breaks_is_an_error_and_is_not_repeated(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    server.answer = lambda path, body: Said(["cut short"], break_after=3)
    state = plain.run(backend=backend, stream=True)
    with pytest.raises(rt.ProgramError) as caught:
        list(state.text_iter("x"))
    assert isinstance(caught.value.cause, rt.EngineFault)
    assert len(server.requests) == 1


def test_a_stream_that_ends_without_saying_so_is_an_error(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    server.answer = lambda path, body: Said(["cut short"], finish="")
    assert isinstance(failure(plain, backend, stream=True), rt.EngineFault)


def test_ending_the_session_ends_its_calls(server: ScriptedOpenAI, backend: rt.OpenAI) -> None:
    server.answer = lambda path, body: [server.gate.wait(10), Said([""])][1]  # type: ignore[return-value]
    server.gate.clear()
    state = plain.run(backend=backend, stream=True)
    threading.Timer(0.1, backend.shutdown).start()
    with pytest.raises(rt.ProgramError) as caught:
        _ = state["x"]
    assert isinstance(caught.value.cause, rt.TransportError)


@pytest.mark.parametrize("apart", [False, True])
def test_a_cancelled_call_has_one_outcome_and_its_branch_can_be_closed(
    server: ScriptedOpenAI, apart: bool
) -> None:
    """Also when the cancel comes with the call, before anything of it has run."""
    server.answer = lambda path, body: [server.gate.wait(10), Said([""])][1]  # type: ignore[return-value]
    server.gate.clear()
    transport = Engine(
        settings(
            server.url,
            "scripted",
            "key",
            mode="auto",
            dialect="auto",
            select="auto",
            timeout_s=20.0,
            max_retries=0,
            max_concurrency=4,
            headers=None,
        )
    ).transport
    got: list[Any] = []

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, got
            got.extend(transport.receive(0.05))

    transport.send([Hello()])
    until(lambda: bool(got))
    transport.send([Open(1), Append(1, (Part("text", "a"),)), Generate(2, 1), Generate(3, 1)])
    if apart:
        until(lambda: bool(server.requests))
    transport.send([Open(4), Generate(5, 4), Cancel(5), Cancel(2), Close(1), Close(4)])
    transport.send([Stats(6)])
    until(lambda: len(got) == 5)
    failures = {message.call: message.code for message in got if isinstance(message, Failed)}
    assert failures == {5: "cancelled", 2: "cancelled", 3: "branch_failed"}
    transport.send([Stats(7)])
    until(lambda: len(got) == 6)
    assert got[-1].data["branches"] == 0
    transport.close()


def test_closing_a_stream_hangs_up(server: ScriptedOpenAI, backend: rt.OpenAI) -> None:
    server.answer = lambda path, body: Said(["a" * 100_000])
    server.gate.clear()
    state = plain.run(backend=backend, stream=True)
    pieces = state.text_iter("x")
    assert next(pieces)
    pieces.close()
    server.gate.set()
    assert server.hung_up.wait(10)


def test_a_deadline_ends_a_call_that_gets_no_answer(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    server.gate.clear()
    server.answer = lambda path, body: [server.gate.wait(10), Said([""])][1]  # type: ignore[return-value]
    assert isinstance(failure(plain, backend, deadline=0.2), rt.DeadlineExceeded)


def test_what_follows_a_failure_on_its_branch_is_not_sent(
    server: ScriptedOpenAI, backend: rt.OpenAI
) -> None:
    server.answer = lambda path, body: Refusal(400)

    @rt.function
    def two(s):
        s += "a" + rt.gen("a") + rt.gen("b")

    failure(two, backend)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [({"heal": True}, "heal"), ({"trace": True}, "trace"), ({"regex": "a", "after": "x"}, "after")],
)
def test_what_cannot_be_had_is_refused_by_name(
    backend: rt.OpenAI, options: dict[str, Any], word: str
) -> None:
    cause = failure(plain, backend, **options)
    assert isinstance(cause, rt.Unsupported)
    assert word in str(cause)


def test_caches_of_ones_own_are_refused_or_named(server: ScriptedOpenAI) -> None:
    with on(server) as backend, pytest.raises(rt.ProgramError, match="tenant"):
        plain.run(backend=backend, tenant="a")
    with on(server, dialect="vllm") as backend:
        plain.run(backend=backend, tenant="a")
        with pytest.raises(rt.CallFailed, match="explain"):
            backend.explain()
    assert server.bodies[-1]["cache_salt"] == "a/"


# ---------------------------------------------------------------- the session


def test_the_model_is_the_only_one_or_has_to_be_named(server: ScriptedOpenAI) -> None:
    with on(server) as backend:
        assert backend.get_model_name() == "scripted"
        assert backend.model.context_length == 4096
    server.models = ["a", "b"]
    with pytest.raises(rt.CallFailed, match=re.escape("a, b")):
        on(server)
    with on(server, model="c") as backend:
        assert backend.get_model_name() == "c"


def test_an_endpoint_without_a_list_of_models_serves_the_one_named(
    server: ScriptedOpenAI,
) -> None:
    server.models_refusal = Refusal(404)
    with on(server, model="mine") as backend:
        assert plain.run(backend=backend)["x"]
    assert server.bodies[0]["model"] == "mine"


def test_a_session_that_cannot_begin_says_why(server: ScriptedOpenAI) -> None:
    server.models_refusal = Refusal(401)
    with pytest.raises(rt.Unauthorized, match="api_key"):
        on(server)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(rt.RuntimeUnavailable):
            rt.OpenAI(f"http://127.0.0.1:{free.getsockname()[1]}/v1")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("base_url", "localhost:8000"),
        ("base_url", "http://u:p@host/v1"),
        ("api_key", "a b"),
        ("mode", "text"),
        ("dialect", "tgi"),
        ("select", "guess"),
        ("timeout_s", 0),
        ("max_retries", -1),
        ("max_concurrency", 0),
        ("headers", {"x": "u:p\r\ny: z"}),
        ("headers", [("x", "y")]),
    ],
)
def test_arguments_that_cannot_be_used_are_named(argument: str, value: Any) -> None:
    with pytest.raises(rt.InvalidArgument) as caught:
        rt.OpenAI(**{argument: value})
    assert caught.value.argument == argument
    assert "u:p" not in str(caught.value)


def test_a_batch_runs_on_an_endpoint(server: ScriptedOpenAI, backend: rt.OpenAI) -> None:
    @rt.function
    def row(s, text):
        s += text + rt.gen("x")

    states = row.run_batch([{"text": "a" * n} for n in range(1, 30)], backend=backend)
    assert [state["x"] for state in states] == [f"<{n}>" for n in range(1, 30)]
