"""The openai package, of any major version."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import openai
from checks import ANSWER, BASE_URL, EXTRACT, MESSAGES, MODEL, Checks
from pydantic import BaseModel
from servers import serving

checks = Checks()
client = openai.OpenAI(base_url=BASE_URL, api_key="unused", max_retries=0, timeout=60)
chat = client.chat.completions


class Person(BaseModel):
    name: str
    age: int
    job: str


ADD_ORDER = {
    "type": "function",
    "function": {
        "name": "add_order",
        "description": "Add an order.",
        "parameters": {
            "type": "object",
            "properties": {
                "customer": {"type": "string"},
                "item": {"type": "string"},
                "quantity": {"type": "integer"},
            },
            "required": ["customer", "item", "quantity"],
            "additionalProperties": False,
        },
    },
}
ORDER = [{"role": "user", "content": "Text: New order from Emma York: 10 green belts."}]

with checks.that("models are listed and described"):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL

with checks.that("a chat is answered, and its prefix is cached the second time"):
    first = chat.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=32)
    assert first.choices[0].message.content == ANSWER, first
    assert first.choices[0].finish_reason == "stop"
    again = chat.create(model=MODEL, messages=MESSAGES, temperature=0, max_completion_tokens=32)
    assert again.choices[0].message.content == ANSWER
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    assert again.usage.total_tokens == again.usage.prompt_tokens + again.usage.completion_tokens

with checks.that("a stream has the same text, and its usage at the end"):
    events = list(
        chat.create(
            model=MODEL,
            messages=MESSAGES,
            temperature=0,
            max_tokens=32,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
    assert text == ANSWER
    assert events[-1].usage.completion_tokens > 0
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == "stop"

with checks.that("n outputs, and the same ones with the same seed"):
    runs = [
        chat.create(model=MODEL, messages=MESSAGES, n=3, seed=5, temperature=1.5, max_tokens=8)
        for _ in range(2)
    ]
    texts = [[choice.message.content for choice in run.choices] for run in runs]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 3

with checks.that("stop strings, lengths and biases"):
    stopped = chat.create(model=MODEL, messages=MESSAGES, temperature=0, stop=[" in"])
    assert stopped.choices[0].message.content == "Maria lives"
    short = chat.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=2)
    assert short.choices[0].finish_reason == "length"

with checks.that("log probabilities, with the likeliest tokens"):
    scored = chat.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
    )
    entries = scored.choices[0].logprobs.content
    assert len(entries) == 4
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    assert all(entry.logprob <= 0 for entry in entries)

with checks.that("a JSON schema is enforced"):
    answered = chat.create(
        model=MODEL,
        messages=[{"role": "user", "content": EXTRACT}],
        temperature=0,
        max_tokens=80,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "strict": True, "schema": Person.model_json_schema()},
        },
    )
    Person.model_validate_json(answered.choices[0].message.content)

with checks.that("parse returns an instance of a pydantic model"):
    parse = getattr(chat, "parse", None) or client.beta.chat.completions.parse
    parsed = parse(
        model=MODEL,
        messages=[{"role": "user", "content": EXTRACT}],
        temperature=0,
        max_tokens=80,
        response_format=Person,
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)

with checks.that("a named tool is called under its schema"):
    called = chat.create(
        model=MODEL,
        messages=ORDER,
        tools=[ADD_ORDER],
        tool_choice={"type": "function", "function": {"name": "add_order"}},
        temperature=0,
        max_tokens=100,
    )
    [call] = called.choices[0].message.tool_calls
    assert call.function.name == "add_order"
    assert set(json.loads(call.function.arguments)) == {"customer", "item", "quantity"}

with checks.that("a required tool is called in a stream, and its result is taken"):
    name, arguments, identity = "", "", ""
    for event in chat.create(
        model=MODEL,
        messages=ORDER,
        tools=[ADD_ORDER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=100,
        stream=True,
    ):
        for part in event.choices[0].delta.tool_calls or ():
            identity = part.id or identity
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert name == "add_order"
    assert isinstance(json.loads(arguments)["quantity"], int)
    call = {
        "id": identity,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    followed = chat.create(
        model=MODEL,
        messages=[
            *ORDER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": identity, "content": "done"},
        ],
        tools=[ADD_ORDER],
        max_tokens=16,
    )
    assert followed.choices[0].finish_reason in ("stop", "length", "tool_calls")

with checks.that("completions echo their prompt with its log probabilities"):
    echoed = client.completions.create(
        model=MODEL, prompt="Once upon a time", echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    logprobs = echoed.choices[0].logprobs
    assert echoed.choices[0].text.startswith("Once upon a time")
    assert logprobs.token_logprobs[0] is None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)

with checks.that("completions take lists of texts and of token ids, and stream"):
    prompts = ["Q: 1 + 1?\nA:", "Q: 2 + 2?\nA:"]
    batch = client.completions.create(model=MODEL, prompt=prompts, max_tokens=3, temperature=0)
    assert [choice.index for choice in batch.choices] == [0, 1]
    ids = client.completions.create(model=MODEL, prompt=[[5, 6, 7], [8, 9]], max_tokens=2)
    assert len(ids.choices) == 2
    pieces = client.completions.create(
        model=MODEL, prompt=prompts[0], max_tokens=3, temperature=0, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces) == batch.choices[0].text

with checks.that("the responses API answers and streams"):
    answered = client.responses.create(
        model=MODEL,
        instructions=MESSAGES[0]["content"],
        input=MESSAGES[1]["content"],
        temperature=0,
    )
    assert answered.output_text == ANSWER, answered.output_text
    text = "".join(
        event.delta
        for event in client.responses.create(
            model=MODEL,
            instructions=MESSAGES[0]["content"],
            input=MESSAGES[1]["content"],
            temperature=0,
            stream=True,
        )
        if event.type == "response.output_text.delta"
    )
    assert text == ANSWER

with checks.that("errors have their types"):
    for wrong, error in (
        ({"model": "none"}, openai.NotFoundError),
        ({"temperature": -1}, openai.BadRequestError),
        ({"response_format": {"type": "xml"}}, openai.BadRequestError),
        ({"max_tokens": 10_000_000}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
    ):
        try:
            chat.create(**{"model": MODEL, "messages": MESSAGES, **wrong})
        except error as caught:
            assert caught.body["message"], wrong
        else:
            raise AssertionError(f"{wrong} was accepted")
    long = [{"role": "user", "content": "word " * 5000}]
    try:
        chat.create(model=MODEL, messages=long)
    except openai.BadRequestError as caught:
        assert caught.code == "context_length_exceeded", caught.code

with checks.that("closing a stream ends it, and the server goes on"):
    stream = chat.create(model=MODEL, messages=MESSAGES, max_tokens=1000, stream=True)
    next(iter(stream))
    stream.close()
    assert chat.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=32)

with checks.that("sixty-four asynchronous chats at once"):

    async def many() -> list[str]:
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key="unused") as several:
            answers = await asyncio.gather(
                *(
                    several.chat.completions.create(
                        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=32
                    )
                    for _ in range(64)
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    assert set(asyncio.run(many())) == {ANSWER}

with checks.that("keys: none and wrong ones are refused, limits name when to come again"):
    keys = Path("keys.toml").resolve()
    keys.write_text(
        '[[keys]]\nname = "one"\nkey = "a-key-of-someone-0"\nrequests_per_minute = 3\n'
        '[[keys]]\nname = "two"\nkey = "a-key-of-someone-1"\ntenant = "two"\n'
    )
    with serving("--api-key-file", str(keys)) as closed:
        clients = [
            openai.OpenAI(base_url=f"{closed.url}/v1", api_key=key, max_retries=0)
            for key in ("wrong-key-of-nobody", "a-key-of-someone-0", "a-key-of-someone-1")
        ]
        wrong, limited, other = (client.chat.completions for client in clients)
        asked = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 32}
        try:
            wrong.create(**asked)
        except openai.AuthenticationError as caught:
            assert "a-key" not in str(caught)
        else:
            raise AssertionError("a wrong key was accepted")
        answers = [limited.create(**asked) for _ in range(3)]
        assert {answer.choices[0].message.content for answer in answers} == {ANSWER}
        assert answers[-1].usage.prompt_tokens_details.cached_tokens > 0
        try:
            limited.create(**asked)
        except openai.RateLimitError as caught:
            assert float(caught.response.headers["retry-after"]) > 0
        else:
            raise AssertionError("the limit was not kept")
        apart = other.create(**asked).usage.prompt_tokens_details
        assert apart.cached_tokens == 0, "a tenant found another's prefix"

checks.end()
