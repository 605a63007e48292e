"""outlines: output types through its models of vLLM, of SGLang and of OpenAI."""

from __future__ import annotations

import re
from enum import Enum
from typing import Literal

import openai
import outlines
from checks import ANSWER, BASE_URL, EXTRACT, FACTS, MODEL, QUESTION, Checks
from outlines.inputs import Chat
from outlines.types import CFG, Regex
from pydantic import BaseModel

checks = Checks()
client = openai.OpenAI(base_url=BASE_URL, api_key="unused", max_retries=0, timeout=60)
chat = Chat([{"role": "system", "content": FACTS}, {"role": "user", "content": QUESTION}])
review = "Review: great fun\nSentiment:"


class Person(BaseModel):
    name: str
    age: int
    job: str


class Mood(Enum):
    positive = "positive"
    negative = "negative"


models = {
    "vllm": outlines.from_vllm(client, MODEL),
    "sglang": outlines.from_sglang(client, MODEL),
}
for name, model in models.items():
    with checks.that(f"{name}: a chat, whole and streamed"):
        assert model(chat, temperature=0, max_tokens=32) == ANSWER
        assert "".join(model.stream(chat, temperature=0, max_tokens=32)) == ANSWER

    with checks.that(f"{name}: a choice among literals and of an enum"):
        assert model(review, Literal["positive", "negative"], max_tokens=8) in Mood.__members__
        assert model(review, Mood, max_tokens=8) in Mood.__members__

    with checks.that(f"{name}: a regex"):
        text = model(QUESTION, Regex(r"[A-Z][a-z]{2,5}, [0-9]{4}"), max_tokens=32)
        assert re.fullmatch(r"[A-Z][a-z]{2,5}, [0-9]{4}", text), text

    with checks.that(f"{name}: a pydantic model, and a number"):
        Person.model_validate_json(model(EXTRACT, Person, temperature=0, max_tokens=120))
        int(model("Question: What is 2 + 3?", int, temperature=0, max_tokens=8))

with checks.that("vllm: a grammar in Lark"):
    grammar = 'start: "(" NUMBER ("+" NUMBER)* ")"\nNUMBER: /[0-9]{1,2}/\n'
    text = models["vllm"](QUESTION, CFG(grammar), max_tokens=64)
    assert re.fullmatch(r"\([0-9]{1,2}(\+[0-9]{1,2})*\)", text), text

with checks.that("sglang: a grammar in EBNF"):
    grammar = 'root ::= "(" number ("+" number)* ")"\nnumber ::= [0-9] [0-9]?\n'
    text = models["sglang"](QUESTION, CFG(grammar), max_tokens=64)
    assert re.fullmatch(r"\([0-9]{1,2}(\+[0-9]{1,2})*\)", text), text

with checks.that("openai: a pydantic model as response format"):
    model = outlines.from_openai(client, MODEL)
    Person.model_validate_json(model(EXTRACT, Person, temperature=0, max_tokens=120))

checks.end()
