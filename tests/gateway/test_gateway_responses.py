"""``/v1/responses`` on the shipped model."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from gateway_process import Gateway

RESPONSES = "/v1/responses"

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 10}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def respond(api: Gateway, given: Any = "Where does Maria live?", **fields: Any) -> dict[str, Any]:
    return api.ok(RESPONSES, input=given, **({"max_output_tokens": 8} | fields))


def text_of(response: dict[str, Any]) -> str:
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


def stream(api: Gateway, **fields: Any) -> list[dict[str, Any]]:
    answer = api.post(RESPONSES, stream=True, **fields)
    assert answer.status_code == 200
    events = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        kind, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def test_a_response_says_what_a_chat_says(api: Gateway) -> None:
    response = respond(api, temperature=0, instructions="Be kind.")
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Where does Maria live?"},
    ]
    chat = api.ok("/v1/chat/completions", messages=messages, temperature=0, max_tokens=8)
    assert text_of(response) == chat["choices"][0]["message"]["content"]
    assert response["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert response["usage"]["input_tokens_details"].keys() == {"cached_tokens"}


def test_a_response_goes_on_with_an_earlier_one(api: Gateway) -> None:
    first = respond(api, temperature=0)
    second = respond(api, "And Tom?", temperature=0, previous_response_id=first["id"])
    items = [
        {"role": "user", "content": "Where does Maria live?"},
        *first["output"],
        {"role": "user", "content": "And Tom?"},
    ]
    whole = respond(api, items, temperature=0, store=False)
    assert text_of(second) == text_of(whole)
    assert second["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    assert api.http.get(f"{RESPONSES}/{first['id']}").json() == first
    assert api.http.get(f"{RESPONSES}/{whole['id']}").status_code == 404
    assert api.http.delete(f"{RESPONSES}/{first['id']}").json()["deleted"]
    error = api.refused(RESPONSES, 404, input="x", previous_response_id=first["id"])
    assert error["code"] == "previous_response_not_found"


def test_the_events_build_the_response(api: Gateway) -> None:
    fields: dict[str, Any] = {"input": "Where?", "max_output_tokens": 6, "temperature": 0}
    events = stream(api, **fields)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    last = events[-1]["response"]
    assert kinds[-1] == f"response.{last['status']}"
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert (
        "".join(deltas)
        == text_of(last)
        == text_of(respond(api, "Where?", max_output_tokens=6, temperature=0))
    )
    (done,) = (e for e in events if e["type"] == "response.output_item.done")
    assert done["item"] == last["output"][0]
    assert kinds.index("response.output_item.added") < kinds.index("response.content_part.added")


def test_a_call_and_its_events(api: Gateway) -> None:
    fields: dict[str, Any] = {
        "input": "Weather in Oslo?", "tools": [WEATHER], "tool_choice": "required",
        "parallel_tool_calls": False, "max_output_tokens": 80,
    }  # fmt: skip
    events = stream(api, **fields)
    last = events[-1]["response"]
    (call,) = last["output"]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "weather", "completed")
    jsonschema.validate(json.loads(call["arguments"]), WEATHER["parameters"])
    kind = "response.function_call_arguments.delta"
    assert "".join(e["delta"] for e in events if e["type"] == kind) == call["arguments"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "Rain."}
    response = respond(api, [output], previous_response_id=last["id"], tools=[WEATHER])
    assert response["status"] in ("completed", "incomplete")


def test_a_format_binds_the_text(api: Gateway) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
        "additionalProperties": False,
    }
    text = {"format": {"type": "json_schema", "name": "p", "strict": True, "schema": schema}}
    response = respond(api, text=text, max_output_tokens=40)
    jsonschema.validate(json.loads(text_of(response)), schema)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "messages[0].content[0].type"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"input": "x", "text": {"format": {"type": "poem"}}}, "response_format.type"),
        ({"input": "x", "include": ["file_search_call.results"]}, "include"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "n": 2}, "n"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(api: Gateway, fields: dict[str, Any], param: str) -> None:
    assert api.refused(RESPONSES, **fields)["param"] == param
