"""guidance: its vLLM model, whose grammars only the server can enforce."""

from __future__ import annotations

import json
import re

from checks import ANSWER, BASE_URL, EXTRACT, FACTS, MODEL, QUESTION, Checks
from guidance import assistant, gen, select, system, user
from guidance import json as gen_json
from guidance.models.experimental import VLLMModel
from pydantic import BaseModel

checks = Checks()


class Person(BaseModel):
    name: str
    age: int
    job: str


def asked(text: str, facts: str = FACTS) -> VLLMModel:
    """A conversation up to the question; the likeliest tokens follow it."""
    greedy = {"top_k": 1}
    model = VLLMModel(
        MODEL, base_url=BASE_URL, api_key="unused", echo=False, sampling_params=greedy
    )
    with system():
        model += facts
    with user():
        model += text
    return model


with checks.that("free text"):
    model = asked(QUESTION)
    with assistant():
        model += gen("answer", max_tokens=32)
    assert model["answer"] == ANSWER, model["answer"]

with checks.that("a choice that the model would not make by itself"):
    model = asked(QUESTION)
    with assistant():
        model += select(["zebra", "quokka"], name="animal")
    assert model["animal"] in ("zebra", "quokka")

with checks.that("a regex, token by token"):
    pattern = r"[0-9]{3}-[a-f]{4}"
    model = asked(QUESTION)
    with assistant():
        model += gen("code", regex=pattern, max_tokens=32)
    assert re.fullmatch(pattern, model["code"]), model["code"]

with checks.that("literal text around generations"):
    model = asked(QUESTION)
    with assistant():
        model += (
            "Id: " + gen("id", regex="[0-9]{2}") + ", name: " + gen("name", regex="[A-Z][a-z]{3}")
        )
    assert re.fullmatch("[0-9]{2}", model["id"])
    assert re.fullmatch("[A-Z][a-z]{3}", model["name"])
    assert f"Id: {model['id']}, name: {model['name']}" in str(model)

with checks.that("a pydantic model as JSON"):
    model = asked(EXTRACT, "Be exact.")
    with assistant():
        model += gen_json("person", schema=Person, max_tokens=150)
    Person.model_validate(json.loads(model["person"]))

with checks.that("a stop, and what follows in a second message"):
    model = asked(QUESTION)
    with assistant():
        model += gen("first", max_tokens=32)
    with user():
        model += "What does Maria do?"
    with assistant():
        model += gen("second", max_tokens=32)
    assert model["first"] == ANSWER
    assert "baker" in model["second"], model["second"]

checks.note(
    "it writes a gen's temperature into the grammar, where ours does not read it; "
    "sampling_params of its model reach the server"
)
checks.end()
