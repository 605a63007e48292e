"""instructor: pydantic models as answers."""

from __future__ import annotations

import json

import instructor
import openai
from checks import BASE_URL, EXTRACT, MODEL, Checks
from instructor.core.exceptions import InstructorRetryException
from pydantic import BaseModel, ConfigDict, Field, field_validator

checks = Checks()
plain = openai.OpenAI(base_url=BASE_URL, api_key="unused", max_retries=0, timeout=60)
messages = [{"role": "user", "content": EXTRACT}]


class Person(BaseModel):
    name: str
    age: int
    job: str


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    with checks.that(f"a model in mode {mode.name}"):
        client = instructor.from_openai(plain, mode=mode)
        person, raw = client.chat.completions.create_with_completion(
            model=MODEL,
            response_model=Person,
            messages=messages,
            temperature=0,
            max_tokens=120,
            max_retries=0,
        )
        assert isinstance(person, Person)
        assert raw.usage.prompt_tokens > 0

client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)

with checks.that("partial objects of a stream"):
    partials = list(
        client.chat.completions.create_partial(
            model=MODEL, response_model=Person, messages=messages, temperature=0, max_tokens=120
        )
    )
    assert len(partials) > 1
    assert partials[-1].age is not None

with checks.that("a list of models within a model"):

    class People(BaseModel):
        model_config = ConfigDict(extra="forbid")
        people: list[Person] = Field(min_length=1, max_length=2)

    found = client.chat.completions.create(
        model=MODEL, response_model=People, messages=messages, temperature=0, max_tokens=300
    )
    assert all(isinstance(person, Person) for person in found.people)

with checks.that("mode JSON, which promises an object and no more, gives an object"):
    try:
        instructor.from_openai(plain, mode=instructor.Mode.JSON).chat.completions.create(
            model=MODEL,
            response_model=Person,
            messages=messages,
            temperature=0,
            max_tokens=120,
            max_retries=0,
        )
    except InstructorRetryException as error:
        assert isinstance(json.loads(error.last_completion.choices[0].message.content), dict)

with checks.that("a validator's refusal is sent back and tried again"):
    attempts = []

    class Late(Person):
        @field_validator("age")
        @classmethod
        def second_time(cls, age: int) -> int:
            attempts.append(age)
            if len(attempts) < 2:
                raise ValueError("say it again")
            return age

    person = client.chat.completions.create(
        model=MODEL,
        response_model=Late,
        messages=messages,
        temperature=0,
        max_tokens=120,
        max_retries=2,
    )
    assert len(attempts) == 2
    assert person.age == attempts[-1]

checks.end()
