"""A chat with tools through a template that knows them: definitions, calls, results."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import radixrt as rt

NANO = Path(rt.__file__).parent / "models" / "nano"
TEMPLATE = """{%- if tools %}{{- '<|system|>\n' }}
{%- for tool in tools %}{{- tool | tojson }}{{- '\n' }}{%- endfor %}{{- '<|end|>\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|user|>' }}{%- endif %}
{{- '\n<tool_response>' + message.content + '</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|end|>\n' }}{%- endif %}
{%- else %}{{- '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{%- endif %}
{%- endfor %}
{#- <tool_call> -#}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"""


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rt.Backend]:
    model = tmp_path_factory.mktemp("models") / "tools"
    shutil.copytree(NANO, model, ignore=shutil.ignore_patterns("heldout"))
    (model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    with rt.Runtime(model) as runtime:
        yield runtime


def weather(city: str) -> dict[str, Any]:
    """Tell the weather."""
    return {"city": city, "rain": True}


def test_definitions_calls_and_results_are_where_the_template_wants_them(
    backend: rt.Backend,
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.tools([weather])
        s += rt.user("Will it rain in Oslo or in Rome?")
        s += rt.assistant(
            rt.gen("calls", tools=[weather], tool_choice="required", max_tokens=200, seed=3)
        )
        for call in [*s["calls"], *s["calls"]][:2]:
            s += rt.tool(call.call())
        s += rt.assistant(rt.gen("answer", max_tokens=4))

    state = program.run(backend=backend)
    text = state.text()
    assert text.startswith('<|system|>\n{"type": "function", "function": {"name": "weather"')
    assert state["calls"][0].name == "weather"
    assert isinstance(state["calls"][0].arguments["city"], str)
    assert f"<|assistant|>\n{state.raw('calls')}<|end|>\n<|user|>\n<tool_response>{{" in text
    assert text.count("<tool_response>") == 2
    assert "</tool_response>\n<tool_response>" in text
    assert "</tool_response><|end|>\n<|assistant|>\n" in text
    roles = [message["role"] for message in state.messages()]
    assert roles == ["user", "assistant", "tool", "tool", "assistant"]


def test_tools_are_declared_before_the_first_message(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.user("Hi") + rt.tools([weather]) + rt.assistant(rt.gen("x", max_tokens=2))

    with pytest.raises(rt.ProgramError, match="before the first message"):
        program.run(backend=backend)
