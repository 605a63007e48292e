"""Our own client: rt.OpenAI in an environment that has neither torch nor the runtime's packages."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from checks import ANSWER, BASE_URL, EXTRACT, FACTS, QUESTION, Checks

import radixrt as rt

checks = Checks()


@dataclass
class Person:
    name: str
    age: int
    job: str | None = None


@rt.function
def ask(s):
    s += rt.system(FACTS) + rt.user(QUESTION)
    s += rt.assistant(rt.gen("answer", max_tokens=32, temperature=0))


@rt.function
def extract(s):
    s += EXTRACT + rt.gen("person", type=Person, spaced=True, max_tokens=60, temperature=0)


@rt.function
def mood(s, review):
    s += f"Review: great fun\nSentiment: positive\n\nReview: {review}\nSentiment:"
    s += rt.select("mood", choices=[" positive", " negative"])


with checks.that("nothing of a runtime is installed"):
    for package in ("torch", "transformers", "tokenizers", "fastapi", "jinja2", "llguidance"):
        assert importlib.util.find_spec(package) is None, package

for dialect in ("auto", "vllm", "sglang", "openai"):
    with (
        checks.that(f"programs in the dialect {dialect}"),
        rt.OpenAI(BASE_URL, dialect=dialect) as b,
    ):
        assert ask.run(backend=b)["answer"] == ANSWER
        assert mood.run("I loved it", backend=b)["mood"] in (" positive", " negative")
        if dialect != "openai":  # whose completions know no schema
            assert isinstance(extract.run(backend=b)["person"], Person)

with checks.that("a batch, and a stream"), rt.OpenAI(BASE_URL) as b:
    rows = [{"review": f"what a day number {number}"} for number in range(64)]
    states = mood.run_batch(rows, backend=b)
    assert len({state["mood"] for state in states} - {" positive", " negative"}) == 0
    state = ask.run(backend=b, stream=True)
    assert "".join(state.text_iter("answer")) == ANSWER

checks.end()
