"""Roles through templates of the shapes that models ship: piece by piece as whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_tokenizer import CHAT_TEMPLATE, write_model_directory

from radixrt.errors import InvalidArgument, ModelError
from radixrt.runtime.frontend.chat import (
    PlainFormat,
    TemplateFormat,
    Turns,
    end_of_turn_ids,
    load_chat_format,
)
from radixrt.runtime.tokenizer import Tokenizer

LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- '<|start|>system<|stop|>\n\nToday: ' + strftime_now('%d %b %Y') + '\n\n' + system + '<|eot|>' }}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|stop|>\n\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|stop|>\n\n' }}{%- endif %}"""

MISTRAL = """{{- bos_token }}{% for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate user/assistant') }}{% endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"""

QWEN = """{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' and loop.last %}
{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message.content + '<|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
{%- set first = messages[0]['content'] + '\n\n' -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- endif -%}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{%- endif -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
{{- message['content'] | trim + '<end_of_turn>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}


def spell(source: str, *turns: tuple[str, str], generate: bool = False) -> str:
    """Write a conversation piece by piece, as a program does."""
    chat = TemplateFormat(source, VARIABLES)
    state, written = Turns(), ""
    for role, content in turns:
        begin, state = chat.begin(state, role)
        end, state = chat.end(state, role)
        written += begin + content + end
    return written + (chat.begin(state, "assistant")[0] if generate else "")


def whole(source: str, *turns: tuple[str, str], generate: bool = False) -> str:
    """Render it at once, as transformers does."""
    chat = TemplateFormat(source, VARIABLES)
    return chat._template.render(
        messages=[{"role": role, "content": content} for role, content in turns],
        add_generation_prompt=generate,
        **VARIABLES,
    )


SYSTEM, USER, ASSISTANT = ("system", "Be brief."), ("user", "Hi there"), ("assistant", "Hello")


@pytest.mark.parametrize(
    "source", [LLAMA3, QWEN, GEMMA, CHAT_TEMPLATE], ids=["llama3", "qwen", "gemma", "nano"]
)
@pytest.mark.parametrize(
    "turns",
    [
        (USER,),
        (SYSTEM, USER),
        (USER, ASSISTANT, USER),
        (SYSTEM, USER, ASSISTANT, USER, ASSISTANT, USER),
    ],
)
def test_piece_by_piece_is_what_the_template_renders_at_once(
    source: str, turns: tuple[tuple[str, str], ...]
) -> None:
    assert spell(source, *turns, generate=True) == whole(source, *turns, generate=True)


def test_a_template_without_generation_prompt_leaves_the_first_space_to_the_model() -> None:
    written = spell(MISTRAL, USER, generate=True)
    assert written == "<s>[INST] Hi there [/INST]"
    assert spell(MISTRAL, USER, ASSISTANT, USER) == (
        "<s>[INST] Hi there [/INST]Hello</s>[INST] Hi there [/INST]"
    )


def test_a_template_that_spells_earlier_turns_otherwise_changes_nothing_written() -> None:
    written = spell(QWEN, USER, ASSISTANT)
    assert spell(QWEN, USER, ASSISTANT, USER).startswith(written)
    assert "<think>" not in written


def test_a_role_that_the_template_refuses_says_what_the_template_says() -> None:
    with pytest.raises(InvalidArgument, match="roles must alternate"):
        spell(MISTRAL, SYSTEM, USER)
    with pytest.raises(InvalidArgument, match="must alternate"):
        spell(GEMMA, USER, USER)


def test_roles_are_opened_and_closed_in_pairs() -> None:
    for chat in (PlainFormat(), TemplateFormat(CHAT_TEMPLATE, {})):
        _, opened = chat.begin(Turns(), "user")
        with pytest.raises(InvalidArgument, match="close the open role 'user' first"):
            chat.begin(opened, "assistant")
        with pytest.raises(InvalidArgument, match="the open role is 'user'"):
            chat.end(opened, "assistant")
        with pytest.raises(InvalidArgument, match="the open role is None"):
            chat.end(Turns(), "user")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}",
        "{{ messages.append(1) }}{{ messages[0].content }}",
        "{{ messages[0].nope.nope }}",
    ],
)
def test_a_template_is_run_in_a_sandbox(source: str) -> None:
    with pytest.raises(InvalidArgument, match="refuses"):
        TemplateFormat(source, {}).begin(Turns(), "user")


def test_a_template_that_is_none_is_an_error_of_the_model() -> None:
    with pytest.raises(ModelError, match="chat template"):
        TemplateFormat("{% for %}", {})


def test_generation_tags_are_transparent() -> None:
    source = (
        "{% for m in messages %}[{% generation %}{{ m.content }}{% endgeneration %}]{% endfor %}"
    )
    assert spell(source, USER) == "[Hi there]"


def test_a_model_without_template_gets_the_plain_format(tmp_path: Path) -> None:
    path = write_model_directory(tmp_path, chat_template=None)
    chat = load_chat_format(path, Tokenizer(path))
    assert not chat.is_template
    begin, turns = chat.begin(Turns(), "user")
    end, turns = chat.end(turns, "user")
    assert begin + "Hi" + end + chat.begin(turns, "assistant")[0] == "User: Hi\nAssistant:"


def test_a_template_file_comes_before_the_tokenizers_config(tmp_path: Path) -> None:
    path = write_model_directory(tmp_path, chat_template="{{ 'config' + messages[0].content }}")
    tokenizer = Tokenizer(path)
    assert load_chat_format(path, tokenizer).begin(Turns(), "user")[0] == "config"
    (path / "chat_template.jinja").write_text("{{ 'file' + messages[0].content }}")
    assert load_chat_format(path, tokenizer).begin(Turns(), "user")[0] == "file"


def test_a_list_of_templates_has_a_default(tmp_path: Path) -> None:
    path = write_model_directory(
        tmp_path,
        chat_template=[  # type: ignore[arg-type]
            {"name": "tool_use", "template": "{{ 'tools' + messages[0].content }}"},
            {"name": "default", "template": "{{ 'default' + messages[0].content }}"},
        ],
    )
    assert load_chat_format(path, Tokenizer(path)).begin(Turns(), "user")[0] == "default"


def test_the_special_token_after_an_assistants_turn_ends_it(model_directory: Path) -> None:
    tokenizer = Tokenizer(model_directory)
    chat = load_chat_format(model_directory, tokenizer)
    assert end_of_turn_ids(chat, tokenizer) == {int(tokenizer.encode("<|end|>", markup=True)[0])}
    assert end_of_turn_ids(PlainFormat(), tokenizer) == frozenset()
