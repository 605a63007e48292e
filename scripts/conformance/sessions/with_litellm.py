"""litellm: the server as OpenAI's and as vLLM's."""

from __future__ import annotations

import json

import litellm
from checks import ANSWER, BASE_URL, EXTRACT, MESSAGES, MODEL, Checks

checks = Checks()
litellm.suppress_debug_info = True
where = {"api_base": BASE_URL, "api_key": "unused", "timeout": 60, "num_retries": 0}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a person up.",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
        },
    },
}

for provider in ("openai", "hosted_vllm"):
    model = f"{provider}/{MODEL}"
    with checks.that(f"{provider}: a chat, and its cached tokens"):
        for _ in range(2):
            answer = litellm.completion(
                model=model, messages=MESSAGES, temperature=0, max_tokens=32, **where
            )
            assert answer.choices[0].message.content == ANSWER
        assert answer.usage.prompt_tokens_details.cached_tokens > 0

    with checks.that(f"{provider}: a stream"):
        pieces = litellm.completion(
            model=model, messages=MESSAGES, temperature=0, max_tokens=32, stream=True, **where
        )
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == ANSWER

    with checks.that(f"{provider}: a required tool"):
        answer = litellm.completion(
            model=model,
            messages=MESSAGES,
            tools=[TOOL],
            tool_choice="required",
            temperature=0,
            max_tokens=64,
            **where,
        )
        call = answer.choices[0].message.tool_calls[0].function
        assert call.name == "look_up"
        assert isinstance(json.loads(call.arguments)["name"], str)

    with checks.that(f"{provider}: a JSON schema"):
        schema = {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        }
        answer = litellm.completion(
            model=model,
            messages=[{"role": "user", "content": EXTRACT}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": schema, "strict": True},
            },
            temperature=0,
            max_tokens=80,
            **where,
        )
        assert set(json.loads(answer.choices[0].message.content)) == {"name", "age"}

with checks.that("a text completion"):
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        prompt="Question: What is 2 + 3?\nAnswer:",
        max_tokens=4,
        temperature=0,
        **where,
    )
    assert "5" in answer.choices[0].text, answer.choices[0].text

with checks.that("errors have their types"):
    try:
        litellm.completion(model="openai/none", messages=MESSAGES, **where)
    except litellm.NotFoundError:
        pass
    else:
        raise AssertionError("an unknown model was accepted")

checks.end()
