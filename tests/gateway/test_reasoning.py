"""Reasoning apart from the answer: how a text is cut makes no difference, and what clients see."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from gateway_process import Gateway, gateway, serving_nano
from hypothesis import given, settings
from hypothesis import strategies as st

import radixrt
from radixrt.gateway.reasoning import Reasoning, ReasoningReader
from radixrt.gateway.response_items import messages_of

CHAT = "/v1/chat/completions"

TEMPLATE = """\
{%- for message in messages -%}
<|{{ message.role }}|>
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}<|end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>
{% if thinking is defined %}<think>

{% if not thinking %}</think>

{% endif %}{% endif %}{% endif -%}
"""
"""Its ``thinking`` is open, closed, or the model's own affair."""

OPEN, CLOSED = {"thinking": True}, {"thinking": False}

texts = st.text(st.characters(codec="utf-8"), max_size=12).filter(
    lambda text: "<" not in text and ">" not in text
)
blanks = st.text(" \n", max_size=3)


def read(reader: ReasoningReader, pieces: list[str]) -> tuple[str, str]:
    found = [*(reader.feed(piece) for piece in pieces), reader.finish()]
    return "".join(reasoned for reasoned, _ in found), "".join(said for _, said in found)


def cut(text: str, cuts: list[int]) -> list[str]:
    bounds = sorted({0, len(text), *(min(at, len(text)) for at in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


@settings(max_examples=200, deadline=None)
@given(
    thought=texts,
    answer=texts,
    around=blanks,
    is_open=st.booleans(),
    cuts=st.lists(st.integers(0, 60), max_size=8),
)
def test_reasoning_is_told_apart_however_the_text_is_cut(
    thought: str, answer: str, around: str, is_open: bool, cuts: list[int]
) -> None:
    text = f"{around}{thought}{around}</think>{around}{answer}"
    text = text if is_open else f"{around}<think>{text}"
    reader = ReasoningReader(Reasoning("<think>", "</think>", is_open=is_open))
    assert read(reader, cut(text, cuts)) == (thought.strip(), answer.lstrip())
    assert not reader.is_reasoning


@given(thought=texts, rest=st.sampled_from(["", "<", "</thin"]), cuts=st.lists(st.integers(0, 30)))
def test_reasoning_that_is_cut_off_is_no_answer(thought: str, rest: str, cuts: list[int]) -> None:
    reader = ReasoningReader(Reasoning("<think>", "</think>", is_open=True))
    assert read(reader, cut(thought + rest, cuts)) == ((thought + rest).strip(), "")
    assert reader.is_reasoning


def test_the_tokens_of_reasoning_end_with_its_closing_tag() -> None:
    reasoning = Reasoning("<think>", "</think>", closing_id=7, is_open=True)
    assert reasoning.num_tokens((1, 2, 7, 3), is_whole=False) == 3
    assert reasoning.num_tokens((1, 2), is_whole=True) == 2
    assert reasoning.num_tokens((1, 2), is_whole=False) == 0
    assert Reasoning("<think>", "</think>").num_tokens((1, 2), is_whole=False) == 0


@given(answer=texts, rest=st.sampled_from(["", "<", "<think", "</think>"]))
def test_an_answer_without_reasoning_is_all_said(answer: str, rest: str) -> None:
    reader = ReasoningReader(Reasoning("<think>", "</think>"))
    assert read(reader, list(answer + rest)) == ("", answer + rest)


# ---------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The shipped model with a template that knows reasoning."""
    folder = tmp_path_factory.mktemp("thinking")
    model = folder / "model"
    model.mkdir()
    for file in Path(radixrt.__file__).parent.joinpath("models", "nano").iterdir():
        if file.is_file():
            (model / file.name).symlink_to(file)
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.jinja").write_text(TEMPLATE)
    with serving_nano(folder, model) as served, gateway(served.endpoint) as api:
        api.await_phase("ready")
        yield api


def saying(text: str, **fields: Any) -> dict[str, Any]:
    """A request whose answer is this text, whatever the model would say."""
    return {
        "messages": [{"role": "user", "content": "Is it?"}],
        "constraint": {"kind": "regex", "text": re.escape(text)},
        "max_tokens": 100,
        "temperature": 0,
        **fields,
    }


def streamed(events: list[dict[str, Any]]) -> tuple[str, str]:
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    reasoning = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    return reasoning, "".join(delta.get("content") or "" for delta in deltas)


@pytest.mark.parametrize(
    ("text", "kwargs"),
    [("<think>\nHm.\n</think>\n\nYes.", {}), ("Hm.\n</think>\n\nYes.", OPEN)],
)
def test_reasoning_is_a_field_of_its_own(
    thinking: Gateway, text: str, kwargs: dict[str, Any]
) -> None:
    request = saying(text, chat_template_kwargs=kwargs)
    answer = thinking.ok(CHAT, **request)
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")
    assert streamed(thinking.events(CHAT, **request)) == ("Hm.", "Yes.")


def test_the_tokens_of_a_stream_are_all_told(thinking: Gateway) -> None:
    request = saying("<think>Hm.</think>Yes.", return_token_ids=True)
    whole = thinking.ok(CHAT, **request)["choices"][0]["token_ids"]
    choices = [event["choices"][0] for event in thinking.events(CHAT, **request)]
    assert [i for choice in choices for i in choice.get("token_ids", ())] == whole


@pytest.mark.parametrize(
    ("fields", "reasoning", "content"),
    [
        ({"separate_reasoning": False}, None, "<think>Hm.</think>Yes."),
        ({"include_reasoning": False}, None, "Yes."),
        # A section that the prompt has closed is over: what follows is the answer.
        ({"chat_template_kwargs": CLOSED}, None, "<think>Hm.</think>Yes."),
    ],
)
def test_reasoning_can_be_left_where_it_is_or_out(
    thinking: Gateway, fields: dict[str, Any], reasoning: str | None, content: str
) -> None:
    request = saying("<think>Hm.</think>Yes.", **fields)
    message = thinking.ok(CHAT, **request)["choices"][0]["message"]
    assert (message.get("reasoning_content"), message["content"]) == (reasoning, content)
    assert streamed(thinking.events(CHAT, **request)) == (reasoning or "", content)


def test_an_answer_without_reasoning_is_as_it_was(thinking: Gateway) -> None:
    message = thinking.ok(CHAT, **saying("Yes."))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Yes.", "refusal": None}


def test_reasoning_without_an_end_has_no_answer(thinking: Gateway) -> None:
    request = saying("Hm. " * 10, chat_template_kwargs=OPEN, max_tokens=8)
    choice = thinking.ok(CHAT, **request)["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning_content"].startswith("Hm.")
    assert choice["finish_reason"] == "length"
    usage = thinking.ok(CHAT, **request)["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == usage["completion_tokens"]


@pytest.mark.parametrize("kwargs", [{}, OPEN, CLOSED])
def test_a_schema_binds_the_answer_and_not_the_reasoning(
    thinking: Gateway, kwargs: dict[str, Any]
) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = thinking.ok(
        CHAT,
        messages=[{"role": "user", "content": "Is it?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
        chat_template_kwargs=kwargs,
        max_tokens=60,
        min_tokens=10,  # the model does not say at once that it is done
    )
    message = answer["choices"][0]["message"]
    jsonschema.validate(json.loads(message["content"]), schema)
    assert ("reasoning_content" in message) == (kwargs == OPEN)


def test_a_call_follows_the_reasoning(thinking: Gateway) -> None:
    clock = {"type": "function", "function": {"name": "clock"}}
    message = thinking.ok(
        CHAT,
        messages=[{"role": "user", "content": "What time is it?"}],
        tools=[clock],
        tool_choice="required",
        chat_template_kwargs=OPEN,
        max_tokens=80,
        min_tokens=10,
    )["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "clock"
    assert message["reasoning_content"]
    assert message["content"] is None


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_comes_back_with_the_conversation(thinking: Gateway, name: str) -> None:
    def tokens(**fields: str) -> list[str]:
        messages = [
            {"role": "user", "content": "Is it?"},
            {"role": "assistant", "content": "Yes.", **fields},
        ]
        answer = thinking.ok("/tokenize", messages=messages, return_token_strs=True)
        strings: list[str] = answer["token_strs"]
        return strings

    assert "<think>\nHm.\n</think>\n\nYes." in "".join(tokens(**{name: "Hm."}))
    assert "<think>" not in "".join(tokens())


def test_reasoning_that_is_no_text_is_refused(thinking: Gateway) -> None:
    messages = [{"role": "assistant", "content": "Yes.", "reasoning_content": 3}]
    error = thinking.refused(CHAT, messages=messages)
    assert error["param"] == "messages[0].reasoning_content"


# ---------------------------------------------------------------- responses, and programs


def response(text: str, **fields: Any) -> dict[str, Any]:
    body = saying(text, **fields)
    del body["messages"], body["max_tokens"]
    return {"input": "Is it?", "max_output_tokens": 100, **body}


def test_a_response_has_its_reasoning_as_an_item(thinking: Gateway) -> None:
    answer = thinking.ok("/v1/responses", **response("<think>Hm.</think>Yes."))
    thought, message = answer["output"]
    assert (thought["type"], thought["content"][0]["text"]) == ("reasoning", "Hm.")
    assert (message["type"], message["content"][0]["text"]) == ("message", "Yes.")


def test_a_streamed_response_has_the_events_of_its_reasoning(thinking: Gateway) -> None:
    answer = thinking.post("/v1/responses", stream=True, **response("<think>Hm.</think>Yes."))
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in data]
    deltas = [e["delta"] for e in events if e["type"] == "response.reasoning_text.delta"]
    assert "".join(deltas) == "Hm."
    kinds = [event["type"] for event in events]
    done = kinds.index("response.reasoning_text.done")
    assert events[done]["text"] == "Hm."
    # The items follow one another: the first is whole before the second begins.
    added = [e["item"]["type"] for e in events if e["type"] == "response.output_item.added"]
    assert added == ["reasoning", "message"]
    assert kinds.index("response.output_item.done") < kinds.index("response.output_text.delta")
    whole = events[-1]["response"]
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]
    assert whole["output"][1]["content"][0]["text"] == "Yes."


def test_the_reasoning_of_an_earlier_response_belongs_to_its_message() -> None:
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    told = messages_of(
        None,
        [
            {"role": "user", "content": "Is it?"},
            thought,
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "And now?"},
            {"type": "reasoning", "summary": [], "encrypted_content": "…"},
            thought,
            {"type": "function_call", "name": "clock", "arguments": "{}"},
            thought,
        ],
    )
    assert [message.get("reasoning_content") for message in told] == [None, "Hm.", None, "Hm."]


def test_a_program_has_the_whole_text(thinking: Gateway) -> None:
    @radixrt.function
    def ask(s: radixrt.ProgramState) -> None:
        s += radixrt.user("Is it?")
        s += radixrt.assistant(radixrt.gen("x", regex="<think>Hm[.]</think>Yes", max_tokens=40))

    with radixrt.OpenAI(f"{thinking.url}/v1") as backend:
        assert ask.run(backend=backend)["x"] == "<think>Hm.</think>Yes"
