"""pydantic-ai: agents over the server."""

from __future__ import annotations

import asyncio

from checks import ANSWER, BASE_URL, EXTRACT, FACTS, MODEL, QUESTION, Checks
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

checks = Checks()
model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key="unused"))
settings = {"temperature": 0.0, "max_tokens": 120}


class Person(BaseModel):
    name: str
    age: int
    job: str


with checks.that("an agent answers, with its usage"):
    agent = Agent(model, system_prompt=FACTS, model_settings=settings)
    result = agent.run_sync(QUESTION)
    assert result.output == ANSWER, result.output
    usage = result.usage() if callable(result.usage) else result.usage
    assert usage.output_tokens > 0

with checks.that("an agent's answer is streamed"):

    async def streamed() -> str:
        async with agent.run_stream(QUESTION) as run:
            return "".join([piece async for piece in run.stream_text(delta=True)])

    assert asyncio.run(streamed()) == ANSWER

for way in (NativeOutput, ToolOutput):
    with checks.that(f"output of a type by {way.__name__}"):
        extractor = Agent(model, output_type=way(Person), model_settings=settings, retries=0)
        assert isinstance(extractor.run_sync(EXTRACT).output, Person)

with checks.that("a tool is offered and the conversation goes on"):
    called = []
    assistant = Agent(model, system_prompt=FACTS, model_settings=settings)

    @assistant.tool_plain
    def look_up(name: str) -> str:
        """Look a person up."""
        called.append(name)
        return f"{name} lives in Lisbon."

    assert isinstance(assistant.run_sync(QUESTION).output, str)

with checks.that("a second turn goes on with the first"):
    first = agent.run_sync(QUESTION)
    second = agent.run_sync("What does Maria do?", message_history=first.all_messages())
    assert len(second.all_messages()) > len(first.all_messages())
    assert second.output

checks.end()
