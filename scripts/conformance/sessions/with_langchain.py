"""langchain-openai: chat models and completions as runnables."""

from __future__ import annotations

from checks import ANSWER, BASE_URL, EXTRACT, FACTS, MODEL, QUESTION, Checks
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

checks = Checks()
options = {"base_url": BASE_URL, "api_key": "unused", "temperature": 0, "max_retries": 0}
chat = ChatOpenAI(model=MODEL, max_tokens=32, **options)
messages = [SystemMessage(FACTS), HumanMessage(QUESTION)]


class Person(BaseModel):
    """A person."""

    name: str
    age: int
    job: str


@tool
def look_up(name: str) -> str:
    """Look a person up."""
    return f"{name} lives in Lisbon."


with checks.that("a chat, with its usage"):
    answer = chat.invoke(messages)
    assert answer.content == ANSWER
    assert answer.usage_metadata["output_tokens"] > 0

with checks.that("cached tokens are told"):
    details = chat.invoke(messages).usage_metadata["input_token_details"]
    assert details["cache_read"] > 0

with checks.that("a stream, with its usage"):
    pieces = list(chat.stream(messages, stream_usage=True))
    assert "".join(piece.content for piece in pieces) == ANSWER
    assert any(piece.usage_metadata for piece in pieces)

with checks.that("a batch"):
    answers = chat.batch([messages] * 8)
    assert {answer.content for answer in answers} == {ANSWER}

for method in ("json_schema", "function_calling"):
    with checks.that(f"structured output by {method}"):
        structured = ChatOpenAI(model=MODEL, max_tokens=120, **options).with_structured_output(
            Person, method=method
        )
        assert isinstance(structured.invoke(EXTRACT), Person)

with checks.that("a tool is called, and its result answered"):
    with_tools = ChatOpenAI(model=MODEL, max_tokens=64, **options).bind_tools(
        [look_up], tool_choice="look_up"
    )
    asked = with_tools.invoke(messages)
    [call] = asked.tool_calls
    assert call["name"] == "look_up"
    result = ToolMessage(look_up.invoke(call["args"]), tool_call_id=call["id"])
    assert isinstance(chat.invoke([*messages, asked, result]).content, str)

with checks.that("log probabilities"):
    answer = chat.bind(logprobs=True, top_logprobs=2).invoke(messages)
    assert answer.response_metadata["logprobs"]["content"]

with checks.that("a text completion"):
    text = OpenAI(model=MODEL, max_tokens=4, **options).invoke("Question: What is 2 + 3?\nAnswer:")
    assert "5" in text, text

checks.end()
