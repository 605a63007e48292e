"""The same programs over ZeroMQ and over our own HTTP: the same values, the same texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from gateway_process import Gateway, Nano

import radixrt as rt
from radixrt.lang.transcript import CallStep

REVIEW = "Review: great fun\nSentiment: positive\n\nReview: a dull story\nSentiment: negative\n\n"


@dataclass
class Person:
    name: str
    age: int
    job: str | None = None


def add_order(customer: str, item: str, quantity: int) -> str:
    """Add an order."""
    return f"{quantity} {item} for {customer}"


@rt.function
def ask(s):
    s += rt.system("Facts: Maria lives in Lisbon and works as a baker.")
    for number, question in enumerate(("Where does Maria live?", "What does Maria do?")):
        s += rt.user(question)
        s += rt.assistant(rt.gen(f"answer {number}", max_tokens=32, temperature=0))


@rt.function
def begun(s):
    s += rt.system("Facts: Maria lives in Lisbon and works as a baker.")
    s += rt.user("Where does Maria live?")
    s += rt.assistant("Maria lives" + rt.gen("rest", max_tokens=16, temperature=0))


@rt.function
def extract(s):
    s += "Extract the person as JSON with the keys name, age, job.\n"
    s += "Text: Meet Eva Berg, a pilot who is 41 years old.\nJSON:"
    s += rt.gen("person", type=Person, spaced=True, max_tokens=60, temperature=0)


@rt.function
def mood(s):
    s += REVIEW + "Review: I loved it\nSentiment:"
    s += rt.select("mood", choices=[" positive", " negative"])


@rt.function
def mood_by_contrast(s):
    s += REVIEW + "Review: I loved it\nSentiment:"
    s += rt.select(
        "mood",
        choices=[" positive", re.compile(" neg[a-z]{3,8}")],
        choices_method=rt.unconditional_likelihood_normalized,
    )


@rt.function
def place(s):
    s += rt.system("Facts: Maria lives in Lisbon and works as a baker.")
    s += rt.user("Where does Maria live?")
    s += rt.assistant("Maria lives in " + rt.select("place", choices=["Lisbon", "Paris"]))


@rt.function
def branches(s):
    s += "Some words:"
    forks = s.fork(3)
    for number, fork in enumerate(forks):
        fork += rt.gen("word", max_tokens=6, temperature=0.8, seed=number)
    forks.join()


@rt.function
def sums(s):
    s += "Question: What is 2 + 3?\nAnswer: " + rt.gen_int("sum", max_tokens=4, temperature=0)
    s += "\nQuestion: What is 4 + 3?\nAnswer:" + rt.gen(
        "next", max_tokens=8, stop="\n", temperature=0
    )


@rt.function
def label(s):
    s += 'Review: great fun\nSentiment: "positive"\n\nReview: I loved it\nSentiment: '
    s += rt.gen("label", type=Literal["positive", "negative"], temperature=0)
    s += "\nStars: " + rt.gen("stars", regex="[1-5]", temperature=0)


@rt.function
def desk(s):
    s += rt.user(
        "Extract the order as JSON with the keys customer, item, quantity.\n"
        "Text: New order from Emma York: 10 green belts.\nJSON:\n"
    )
    s += rt.assistant(rt.gen("calls", tools=[add_order], tool_choice="add_order", temperature=0))


@pytest.fixture(scope="module")
def near(nano: Nano) -> Iterator[rt.Backend]:
    with rt.connect(nano.endpoint) as backend:
        yield backend


@pytest.fixture(scope="module")
def far(api: Gateway) -> Iterator[rt.OpenAI]:
    with rt.OpenAI(f"{api.url}/v1") as backend:
        yield backend


@pytest.mark.parametrize(
    "program",
    [ask, begun, extract, mood, mood_by_contrast, place, branches, sums, label, desk],
    ids=lambda program: program.__name__,
)
def test_a_program_has_the_same_values_both_ways(
    near: rt.Backend, far: rt.OpenAI, program: rt.Function
) -> None:
    here, there = program.run(backend=near), program.run(backend=far)
    assert here.variables == there.variables
    for name in here.variables:
        assert here[name] == there[name]
    if not here.messages():
        assert here.text() == there.text()
    elif program is not desk:  # calls are written in no model's own way there
        assert here.messages() == there.messages()


def test_scores_and_counts_are_the_runtimes(near: rt.Backend, far: rt.OpenAI) -> None:
    here, there = (mood.run(backend=backend).get_meta_info("mood") for backend in (near, far))
    assert here["scores"] == pytest.approx(there["scores"], abs=0.1)
    texts = [[entry[2] for entry in option] for option in here["input_token_logprobs"]]
    assert texts == [[entry[2] for entry in option] for option in there["input_token_logprobs"]]
    usage = [ask.run(backend=far).get_meta_info("answer 1") for _ in range(2)][1]
    assert usage["cached_tokens"] > 0
    assert usage["prompt_tokens"] == usage["cached_tokens"] + usage["computed_tokens"]


def test_a_value_grows_while_it_is_streamed(far: rt.OpenAI) -> None:
    state = extract.run(backend=far, stream=True)
    *_, whole = state.partial_iter("person")
    assert whole.is_complete()
    assert whole.name == "Eva Berg"
    # How much of it a reader finds at once is a matter of time; in how many pieces it came is not.
    step = state.execution.values.variable("person")
    assert isinstance(step, CallStep)
    assert len(step.call.chunks) > 3
    assert state["person"] == Person("Eva Berg", 41, "pilot")
    assert "".join(extract.run(backend=far, stream=True).text_iter("person")) == state.raw("person")


def test_failures_have_the_types_they_have_at_a_runtime(near: rt.Backend, far: rt.OpenAI) -> None:
    def failure(backend: rt.Backend, **options: Any) -> type[BaseException]:
        @rt.function
        def failing(s):
            s += "word " * (3000 if options.pop("is_long", False) else 1)
            s += rt.gen("x", **options)

        with pytest.raises(rt.ProgramError) as caught:
            failing.run(backend=backend)
        return type(caught.value.cause)

    cases: list[Callable[[], dict[str, Any]]] = [
        lambda: {"max_tokens": 10_000_000},
        lambda: {"regex": "("},
        lambda: {"deadline": 0.001, "max_tokens": 1500, "ignore_eos": True},
    ]
    for case in cases:
        assert failure(far, **case()) is failure(near, **case())
    assert failure(far, is_long=True) is rt.PromptTooLong


def test_the_cache_is_dropped_and_kept_apart_over_http(far: rt.OpenAI) -> None:
    def cached(**options: Any) -> int:
        return int(ask.run(backend=far, **options).get_meta_info("answer 0")["cached_tokens"])

    cached(tenant="a")
    assert cached(tenant="a") > 0
    assert cached(tenant="b") == 0
    assert far.flush_cache()
    assert cached(tenant="a") == 0


def test_a_message_is_continued_without_being_told_twice(api: Gateway) -> None:
    """SGLang's clients and routers know ``continue_final_message`` alone."""
    begun = [
        {"role": "system", "content": "Facts: Maria lives in Lisbon and works as a baker."},
        {"role": "user", "content": "Where does Maria live?"},
        {"role": "assistant", "content": "Maria lives"},
    ]
    fields = {"messages": begun, "continue_final_message": True, "temperature": 0}
    answer = api.ok("/v1/chat/completions", max_tokens=16, **fields)
    assert answer["choices"][0]["message"]["content"] == " in Lisbon."


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info", "/model_info"])
def test_a_router_learns_the_models_name_and_no_path(api: Gateway, path: str) -> None:
    told = api.http.get(path).json()
    assert told["served_model_name"] == "nano"
    assert "model_path" not in told
