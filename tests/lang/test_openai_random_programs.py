"""Random programs give the same at an endpoint as at a runtime that answers alike."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lang.scripted_openai import Said, ScriptedOpenAI, echo
from lang.scripted_runtime import ScriptedRuntime
from lang.test_lang_random_programs import play

import radixrt as rt

STEPS = st.lists(
    st.one_of(
        st.text("ab\n é", max_size=4),
        st.sampled_from(["gen", "gen2", "select", "role", "fork", "copy", "join"]),
    ),
    max_size=10,
)


def plain(text: str) -> str:
    """A branch of the scripted runtime as the plain lines that an endpoint gets."""
    return text.replace("<|user|>", "User: ").replace("<|end|>", "\n")


def said(prompt: str) -> str:
    return f"{zlib.crc32(prompt.encode()) % 1000}"


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedOpenAI]:
    def answer(path: str, body: dict[str, Any]) -> Any:
        prompt = body["prompt"]
        if isinstance(prompt, str):
            return Said([said(prompt)] * body.get("n", 1))
        before = prompt[0].removesuffix("a")  # the options are "a" and "bc"
        chosen = prompt[len(before) % 2]
        return echo(prompt, lambda text, at: -0.1 if text == chosen + "!" else -1.0)

    with ScriptedOpenAI().serving() as server:
        server.answer = answer
        yield server


@given(steps=STEPS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_random_program_has_the_same_branches(server: ScriptedOpenAI, steps: list[str]) -> None:
    runtime = ScriptedRuntime()
    runtime.answer = lambda text, generate: said(plain(text))
    runtime.choose = lambda text, options: len(plain(text)) % 2

    @rt.function
    def program(s: rt.ProgramState) -> list[tuple[str, dict[str, Any]]]:
        seen: list[rt.ProgramState] = []
        play(s, steps, seen)
        return [(plain(state.text()), {n: state[n] for n in state.variables}) for state in seen]

    with (
        rt.Backend(runtime.transport) as near,
        rt.OpenAI(server.url, mode="completions") as far,
    ):
        assert program.run(backend=far).ret_value == program.run(backend=near).ret_value
