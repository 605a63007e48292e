"""``/v1/chat/completions`` on the shipped model."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import jsonschema
import pytest
from gateway_process import Gateway

CHAT = "/v1/chat/completions"

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 10}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time of day."}}

PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["age"],
    "additionalProperties": False,
}


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def text_of(completion: dict[str, Any]) -> str:
    text = completion["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def test_a_stream_says_what_the_whole_answer_says(api: Gateway) -> None:
    fields: dict[str, Any] = {"max_tokens": 12, "temperature": 0.8, "seed": 7, "n": 3}
    whole = api.chat(**fields)
    events = api.events(
        CHAT,
        messages=user("Where does Maria live?"),
        stream_options={"include_usage": True},
        **fields,
    )
    *events, last = events
    texts = [""] * 3
    reasons: list[Any] = [None] * 3
    for event in events:
        assert event["usage"] is None
        choice = event["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content") or ""
        reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len({event["id"] for event in [*events, last]}) == 1


def test_a_prompt_that_came_before_is_counted_as_cached(api: Gateway) -> None:
    question = "Which of these towns is the oldest one, and what is made there today? " * 4
    first = api.chat(question, max_tokens=1)["usage"]
    again = api.chat(question, max_tokens=1)["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] < again["prompt_tokens"] - 1
    assert again["prompt_tokens_details"]["cached_tokens"] == again["prompt_tokens"] - 1


def test_without_a_limit_an_answer_may_fill_the_context(api: Gateway) -> None:
    content = "a " * 1990
    prompt = api.ok("/tokenize", messages=user(content))
    limit = prompt["max_model_len"]
    assert limit - 60 < prompt["count"] < limit
    completion = api.chat(content, ignore_eos=True)
    assert completion["usage"]["total_tokens"] == limit
    assert completion["choices"][0]["finish_reason"] == "length"


def test_null_is_the_same_as_nothing_and_parts_as_their_text(api: Gateway) -> None:
    plain = api.chat("Who is Tom?", temperature=0, max_tokens=8)
    nulls = dict.fromkeys(
        ("n", "stop", "tools", "seed", "logit_bias", "response_format", "stream", "max_tokens",
         "stream_options", "top_p", "user", "functions", "guided_json", "unheard_of")
    )  # fmt: skip
    parts = [{"type": "text", "text": "Who is"}, {"type": "text", "text": " Tom?"}]
    same = api.chat(parts, temperature=0, max_completion_tokens=8, **nulls)
    assert text_of(same) == text_of(plain)
    assert same["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


def test_fields_that_are_not_known_are_ignored(api: Gateway) -> None:
    assert text_of(api.chat(max_tokens=2, some_new_field={"a": 1})) is not None


def test_a_stop_ends_the_text_before_it_and_is_named(api: Gateway) -> None:
    text = text_of(api.chat(temperature=0, max_tokens=20))
    stop = text[4:7]
    choice = api.chat(temperature=0, max_tokens=20, stop=["#####", stop])["choices"][0]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


def test_a_bias_by_token_id_in_a_string_key(api: Gateway) -> None:
    token = api.ok("/tokenize", prompt="banana", add_special_tokens=False)["tokens"][0]
    text = text_of(api.chat(temperature=0, max_tokens=3, logit_bias={str(token): 100}))
    only = api.ok("/detokenize", tokens=[token] * 3)["prompt"]
    assert text == only


def test_logprobs_have_the_form_of_chats(api: Gateway) -> None:
    choice = api.chat(temperature=0, max_tokens=5, logprobs=True, top_logprobs=3)["choices"][0]
    entries = choice["logprobs"]["content"]
    text = choice["message"]["content"]
    assert "".join(entry["token"] for entry in entries[:5]).startswith(text[:5])
    for entry in entries:
        assert len(entry["top_logprobs"]) == 3
        best = max(entry["top_logprobs"], key=lambda other: other["logprob"])
        assert best["token"] == entry["token"]  # greedy
        assert entry["bytes"] == list(entry["token"].encode())
        assert sum(math.exp(other["logprob"]) for other in entry["top_logprobs"]) < 1.001
    streamed = api.events(
        CHAT, messages=user("Where does Maria live?"), temperature=0, max_tokens=5, logprobs=True
    )
    tokens = [
        entry["token"]
        for event in streamed
        for entry in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert tokens == [entry["token"] for entry in entries]


@pytest.mark.parametrize(
    "fields",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "p", "schema": PERSON},
            }
        },
        {"structured_outputs": {"json": PERSON}},
        {"structured_outputs": {"json": json.dumps(PERSON), "regex": None}},
        {"guided_json": PERSON},
        {"json_schema": json.dumps(PERSON)},
        {"constraint": {"kind": "json_schema", "text": json.dumps(PERSON)}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_schema_in_every_dialect(api: Gateway, fields: dict[str, Any]) -> None:
    value = json.loads(text_of(api.chat(max_tokens=40, temperature=1.2, **fields)))
    jsonschema.validate(value, PERSON)


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "[ab]{3}"}},
        {"guided_regex": "[ab]{3}"},
        {"regex": "[ab]{3}"},
        {"structured_outputs": {"choice": ["aab", "bba"]}},
        {"guided_choice": ["aab", "bba"]},
        {"ebnf": 'root ::= [ab] [ab] ("a" | "b")'},
        {"guided_grammar": 'root ::= [ab] [ab] ("a" | "b")'},
        {"structured_outputs": {"grammar": "start: LETTER LETTER LETTER\nLETTER: /[ab]/\n"}},
        {"grammar": "start: /[ab]{3}/"},
    ],
    ids=lambda fields: json.dumps(fields)[:40],
)
def test_a_language_in_every_dialect(api: Gateway, fields: dict[str, Any]) -> None:
    text = text_of(api.chat(max_tokens=20, temperature=1.0, **fields))
    assert len(text) == 3
    assert set(text) <= set("ab")


def test_any_object(api: Gateway) -> None:
    completion = api.chat(max_tokens=60, response_format={"type": "json_object"})
    assert isinstance(json.loads(text_of(completion)), dict)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "a", "regex": "b"}, "regex"),
        ({"response_format": {"type": "json_object"}, "ebnf": 'root ::= "a"'}, "ebnf"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": "x"}}, None),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structural_tag": "{}"}, "structural_tag"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"guided_unheard_of": "x"}, "guided_unheard_of"),
        ({"response_format": {"type": "audio"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"guided_choice": []}, "guided_choice"),
        ({"regex": "(("}, "regex"),
        ({"ebnf": "root ::= nothing"}, None),
        ({"json_schema": '{"type": "object"'}, "json_schema"),
        ({"guided_json": {"$ref": "#/nowhere"}}, None),
        ({"constraint": {"kind": "regex", "text": "a", "colour": 1}}, "constraint.colour"),
        ({"constraint": {"kind": "rhyme", "text": "a"}}, "constraint"),
        ({"tools": [WEATHER], "regex": "a"}, "tools"),
        (
            {"tools": [WEATHER], "tool_choice": "required",
             "response_format": {"type": "json_object"}},
            "tools",
        ),
    ],
)  # fmt: skip
def test_a_constraint_is_enforced_or_refused(
    api: Gateway, fields: dict[str, Any], param: str | None
) -> None:
    error = api.refused(CHAT, messages=user("x"), max_tokens=20, **fields)
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "x"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": user([{"type": "image_url", "image_url": {"url": "x"}}])},
         "messages[0].content[0].type"),
        ({"messages": user(7)}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -3}, "max_completion_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 1000}, "top_logprobs"),
        ({"stop": [""]}, "stop"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"include_stop_str_in_output": True}, "include_stop_str_in_output"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
         "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"messages": user("x"), "tools": [WEATHER], "functions": [WEATHER["function"]]},
         "functions"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_used_is_named(
    api: Gateway, fields: dict[str, Any], param: str
) -> None:
    error = api.refused(CHAT, **({"messages": user("x"), "max_tokens": 4} | fields))
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"


def test_a_prompt_that_is_too_long_says_by_how_much(api: Gateway) -> None:
    fits = api.ok("/tokenize", messages=user("x"))
    limit, prompt = fits["max_model_len"], fits["count"]
    error = api.refused(CHAT, messages=user("x"), max_tokens=limit - prompt + 5)
    assert error["code"] == "context_length_exceeded"
    assert "by 5;" in error["message"]
    long = api.refused(CHAT, messages=user("word " * 5000))
    assert long["code"] == "context_length_exceeded"


def test_an_unknown_model_is_not_found(api: Gateway) -> None:
    error = api.refused(CHAT, 404, model="gpt-9", messages=user("x"))
    assert (error["param"], error["code"]) == ("model", "model_not_found")


def calls_of(completion: dict[str, Any]) -> list[tuple[str, Any]]:
    calls = completion["choices"][0]["message"].get("tool_calls", [])
    assert len({call["id"] for call in calls}) == len(calls)
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


def test_a_required_call_is_generated_under_its_schema(api: Gateway) -> None:
    completion = api.chat(tools=[WEATHER], tool_choice="required", max_tokens=80, temperature=1.0)
    ((name, arguments),) = calls_of(completion)[:1]
    assert name == "weather"
    jsonschema.validate(arguments, WEATHER["function"]["parameters"])
    assert completion["choices"][0]["finish_reason"] == "tool_calls"
    assert completion["choices"][0]["message"]["content"] is None


def test_a_named_tool_is_called_once_where_calls_are_not_parallel(api: Gateway) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    fields = {"tools": [CLOCK, WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
    completion = api.chat(max_tokens=80, temperature=1.0, **fields)
    assert [name for name, _ in calls_of(completion)] == ["weather"]
    assert completion["choices"][0]["finish_reason"] == "stop"


def test_allowed_tools_are_all_that_can_be_called(api: Gateway) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    completion = api.chat(tools=[CLOCK, WEATHER], tool_choice=choice, max_tokens=80)
    assert {name for name, _ in calls_of(completion)} == {"weather"}


def test_tools_that_may_not_be_called_are_not(api: Gateway) -> None:
    completion = api.chat(tools=[WEATHER], tool_choice="none", max_tokens=5, temperature=0)
    assert "tool_calls" not in completion["choices"][0]["message"]
    assert completion["usage"] == api.chat(max_tokens=5, temperature=0)["usage"] | {
        "prompt_tokens_details": completion["usage"]["prompt_tokens_details"]
    }


def test_a_streamed_call_has_the_deltas_that_clients_put_together(api: Gateway) -> None:
    fields = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 80, "seed": 3}
    whole = calls_of(api.chat(**fields))
    calls: dict[int, dict[str, str]] = {}
    for event in api.events(CHAT, messages=user("Where does Maria live?"), **fields):
        for delta in event["choices"][0]["delta"].get("tool_calls", []):
            if "id" in delta:
                assert delta["type"] == "function"
                calls[delta["index"]] = {"name": delta["function"]["name"], "arguments": ""}
            calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    assert sorted(calls) == list(range(len(calls)))
    assert [(c["name"], json.loads(c["arguments"])) for c in calls.values()] == whole


def test_an_answer_of_a_schema_or_a_call(api: Gateway) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}
    completion = api.chat(tools=[WEATHER], response_format=schema, max_tokens=80, temperature=1.0)
    if not calls_of(completion):
        jsonschema.validate(json.loads(text_of(completion)), PERSON)


def test_functions_as_they_were_before_tools(api: Gateway) -> None:
    completion = api.chat(
        functions=[WEATHER["function"]], function_call={"name": "weather"}, max_tokens=80
    )
    call = completion["choices"][0]["message"]["function_call"]
    assert call["name"] == "weather"
    jsonschema.validate(json.loads(call["arguments"]), WEATHER["function"]["parameters"])


def test_a_conversation_with_a_call_in_it_goes_on(api: Gateway) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        *user("Is it raining?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "It rains."},
    ]
    fields: dict[str, Any] = {"messages": messages, "max_tokens": 5, "tools": [WEATHER]}
    assert api.ok(CHAT, **fields)["choices"][0]["message"]["role"] == "assistant"
    # What was called and what came of it are in the prompt.
    prompt = api.ok("/tokenize", messages=messages, return_token_strs=True)
    text = "".join(prompt["token_strs"])
    assert '"name": "weather"' in text
    assert "It rains." in text


def test_a_final_message_is_continued(api: Gateway) -> None:
    messages = [*user("Name a city."), {"role": "assistant", "content": "The city is"}]
    whole = api.ok(
        CHAT,
        messages=messages,
        add_generation_prompt=False,
        continue_final_message=True,
        temperature=0,
        max_tokens=6,
    )
    raw = "<|user|>\nName a city.<|end|>\n<|assistant|>\nThe city is"
    completion = api.ok("/v1/completions", prompt=raw, temperature=0, max_tokens=6)
    assert text_of(whole) == completion["choices"][0]["text"]


def test_a_request_has_an_id_which_its_answer_names(api: Gateway) -> None:
    given = api.http.post(
        CHAT,
        json={"messages": user("x"), "max_tokens": 1},
        headers={"x-request-id": "trace-17"},
    )
    assert given.headers["x-request-id"] == "trace-17"
    assert given.json()["id"] == "chatcmpl-trace-17"
    hostile = httpx.Headers({"x-request-id": "x" * 500})
    assert len(api.http.get("/health", headers=hostile).headers["x-request-id"]) == 32


def test_an_error_in_a_request_for_a_stream_has_a_status(api: Gateway) -> None:
    error = api.refused(CHAT, messages=user("x"), stream=True, max_tokens=100_000)
    assert error["code"] == "context_length_exceeded"
