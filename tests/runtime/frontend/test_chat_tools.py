"""Tools through templates of the shapes that models ship: definitions and results."""

from __future__ import annotations

import json

import pytest

from radixrt.errors import InvalidArgument
from radixrt.protocol import Part
from radixrt.runtime.frontend.chat import PlainFormat, TemplateFormat, Turns
from radixrt.runtime.frontend.validation import check_parts

HERMES = """{%- if tools %}{{- '<|im_start|>system\nTools:' }}
{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\n' }}
{%- elif messages[0].role != 'system' %}{{- '<|im_start|>system\nBe kind.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}
{%- endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

LLAMA = """{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' and tools is not none and loop.first %}
{{- '<|start|>user<|stop|>\n\nUse: ' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{{- '\n' + message.content + '<|eot|>' }}
{%- elif message.role == 'tool' %}
{{- '<|start|>ipython<|stop|>\n\n' + message.content + '<|eot|>' }}
{%- else %}{{- '<|start|>' + message.role + '<|stop|>\n\n' + message.content + '<|eot|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|stop|>\n\n' }}{%- endif %}"""

MISTRAL = """{{- bos_token }}
{%- set ns = namespace(index=0) %}
{%- for message in messages %}
{%- if message.role != 'tool' and message.tool_calls is not defined %}
{%- if (message.role == 'user') != (ns.index % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{%- endif %}{%- set ns.index = ns.index + 1 %}
{%- endif %}
{%- if message.role == 'user' %}
{%- if tools is not none and loop.last %}{{- '[TOOLS] ' + tools | tojson + '[/TOOLS]' }}{%- endif %}
{{- '[INST] ' + message.content + '[/INST]' }}
{%- elif message.tool_calls is defined %}
{%- set call = message.tool_calls[0] %}
{%- if call.id | length != 9 %}{{- raise_exception('ids have nine characters') }}{%- endif %}
{{- '[CALLS] ' + call.function | tojson + eos_token }}
{%- elif message.role == 'tool' %}{{- '[RESULT] ' + message.content + '[/RESULT]' }}
{%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}
{%- endfor %}"""

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = json.dumps([{"type": "function", "function": {"name": "add", "description": "Adds."}}])


def spell(source: str, *turns: tuple[str, str], tools: str = TOOLS) -> str:
    """Write a conversation piece by piece, as a program does, up to what the model goes on from."""
    chat = TemplateFormat(source, VARIABLES)
    state = chat.declare(Turns(), tools) if tools else Turns()
    written = ""
    for role, content in turns:
        begin, state = chat.begin(state, role)
        end, state = chat.end(state, role)
        written += begin + content + end
    return written + chat.begin(state, "assistant")[0]


def whole(source: str, *turns: tuple[str, str], tools: str = TOOLS) -> str:
    chat = TemplateFormat(source, VARIABLES)
    return chat._template.render(
        messages=[{"role": role, "content": content} for role, content in turns],
        add_generation_prompt=True,
        tools=json.loads(tools) if tools else None,
        **VARIABLES,
    )


USER, CALL, RESULT = ("user", "2 + 2?"), ("assistant", "add(2, 2)"), ("tool", "4")


@pytest.mark.parametrize("source", [HERMES, LLAMA], ids=["hermes", "llama"])
@pytest.mark.parametrize(
    "turns",
    [(USER,), (USER, CALL, RESULT), (USER, CALL, RESULT, RESULT), (USER, CALL, RESULT, CALL, USER)],
    ids=len,
)
@pytest.mark.parametrize("tools", [TOOLS, ""], ids=["declared", "none"])
def test_piece_by_piece_is_what_the_template_renders_at_once(
    source: str, turns: tuple[tuple[str, str], ...], tools: str
) -> None:
    written = spell(source, *turns, tools=tools)
    assert written == whole(source, *turns, tools=tools)
    assert ("Adds." in written) is bool(tools)


def test_a_template_that_takes_results_only_after_calls_gets_a_call() -> None:
    written = spell(MISTRAL, USER, CALL, RESULT, ("assistant", "4"), USER, tools="")
    assert written == (
        "<s>[INST] 2 + 2?[/INST]add(2, 2)</s>[RESULT] 4[/RESULT]4</s>[INST] 2 + 2?[/INST]"
    )
    assert spell(MISTRAL, USER).startswith("<s>[TOOLS] ")


def test_tools_come_first_and_only_where_the_template_writes_them() -> None:
    chat = TemplateFormat(HERMES, VARIABLES)
    _, opened = chat.begin(Turns(), "user")
    with pytest.raises(InvalidArgument, match=r"add.*before the first message"):
        chat.declare(opened, TOOLS)
    plain = TemplateFormat("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", {})
    for without in (plain, PlainFormat()):
        with pytest.raises(InvalidArgument, match="writes no tools; describe them"):
            without.declare(Turns(), TOOLS)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 100_000])
def test_definitions_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="array of definitions"):
        check_parts((Part("tools", text),), 10)
