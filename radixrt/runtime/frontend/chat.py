"""Roles in a model's own chat template, rendered piece by piece.

A program opens and closes roles and writes text in between, so what a template puts around a
message is needed before the message is known. It is found by rendering the roles so far with
placeholders for their contents: what stands before a placeholder begins its role, what follows ends
it. Text that was appended never changes: what a template would rewrite in earlier turns stays as it
was.

An assistant's turn begins with the template's generation prompt. A default system prompt or a
beginning-of-sequence token that the template puts first comes with the first role.

A model without a template gets ``PlainFormat``.
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from radixrt.errors import InvalidArgument, ModelError
from radixrt.runtime.frontend.conversation import (
    TAIL,
    Conversation,
    with_results_as_user,
    with_short_ids,
    with_written_calls,
    with_written_tools,
    without_developer,
)
from radixrt.runtime.grammar.tool_calls import FORMATS, FormatName, format_of_template
from radixrt.runtime.tokenizer import Tokenizer, read_json

_CALL_ID = "000000000"
"""Nine characters, as Mistral's templates demand."""

_NO_TOOLS = "the model's chat template writes no tools; describe them in a message of your own"

_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, RecursionError)

MAX_TURNS = 4096
"""Roles of one branch."""


@dataclass(frozen=True, slots=True)
class Turns:
    """The roles of a branch so far. ``tail`` is the markup after the content of the last one,
    ``tools`` the JSON text of the definitions that the template writes among them."""

    roles: tuple[str, ...] = ()
    is_open: bool = False
    tail: str = ""
    tools: str = ""


class ChatFormat(Protocol):
    """How roles are written. All methods raise ``InvalidArgument`` for what cannot come here."""

    is_template: bool
    tool_format: FormatName

    @property
    def source(self) -> str | None:
        """The template's text; None without one."""

    def begin(self, turns: Turns, role: str) -> tuple[str, Turns]:
        """Return the markup that opens a role, and the turns with it open."""

    def end(self, turns: Turns, role: str) -> tuple[str, Turns]:
        """Return the markup that closes the open role, and the turns after it."""

    def declare(self, turns: Turns, tools: str) -> Turns:
        """Return the turns with tools declared, for the roles that follow to be written with."""

    def render(self, conversation: Conversation) -> str:
        """Return the text of a whole conversation. What its messages spell of control tokens has
        the marks of ``conversation.marked`` around it."""


class PlainFormat:
    """``System: …``, ``User: …``, ``Assistant:…``, a line each: for models without a template."""

    is_template = False
    tool_format: FormatName = "hermes"
    source: str | None = None

    def begin(self, turns: Turns, role: str) -> tuple[str, Turns]:
        opened = _opened(turns, role)
        return f"{role.capitalize()}:" + ("" if role == "assistant" else " "), opened

    def end(self, turns: Turns, role: str) -> tuple[str, Turns]:
        return "\n", _closed(turns, role, "\n")

    def declare(self, turns: Turns, tools: str) -> Turns:
        raise InvalidArgument("tools", _names(tools), _NO_TOOLS)

    def render(self, conversation: Conversation) -> str:
        style = FORMATS[self.tool_format]
        conversation = with_written_tools(conversation, style)
        conversation = with_results_as_user(with_written_calls(conversation, style))
        *before, last = [
            f"{message['role'].capitalize()}: {message['content']}"
            for message in without_developer(conversation).messages
        ]
        ending = "" if conversation.continue_final_message else "\n"
        reply = "Assistant:" if conversation.add_generation_prompt else ""
        return "".join(f"{line}\n" for line in before) + last + ending + reply


class TemplateFormat:
    """A jinja template in the form transformers uses, run in an immutable sandbox."""

    is_template = True

    def __init__(self, source: str, variables: dict[str, str]) -> None:
        """``variables``: the tokenizer's ``bos_token`` and so on. Raises ``ModelError``."""
        self._variables = variables
        self.source = source
        self.tool_format = format_of_template(source)
        # One date for the life of the process: a prefix that changes at midnight is no prefix.
        self._now = datetime.datetime.now()
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols, _GenerationTag],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = self._now.strftime
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template is not valid: {error}") from None
        self._rendered: dict[tuple[tuple[str, ...], str, bool], str] = {}
        self._knows: dict[str, bool] = {}

    def begin(self, turns: Turns, role: str) -> tuple[str, Turns]:
        opened = _opened(turns, role)
        between = self._generation_prompt(turns) if role == "assistant" else None
        if between is None:
            between = self._before_content(opened)
            if role == "assistant":
                # A model writes its own first space; with it in the prompt it would see two.
                between = between.rstrip(" ")
        if role == "tool" and turns.tail:
            # What the template itself writes of the call stands in its place already.
            _, found, rest = between.partition(turns.tail)
            between = turns.tail + rest if found else between
        if not between.startswith(turns.tail):
            raise InvalidArgument(
                "role", role, f"the chat template rewrites the turn before it, {turns.roles[-1:]}"
            )
        return between[len(turns.tail) :], opened

    def end(self, turns: Turns, role: str) -> tuple[str, Turns]:
        closed = _closed(turns, role, "")
        if role == "tool":
            # Several results may share a turn: what ends it is known when the next role begins.
            return "", closed
        rendered = self._render(turns, generation=False)
        _, found, tail = rendered.partition(_placeholder(len(turns.roles) - 1))
        # A role that the template folds into the next one has no end of its own.
        tail = tail if found else ""
        return tail, replace(closed, tail=tail)

    def declare(self, turns: Turns, tools: str) -> Turns:
        """Return the turns with tools declared; refuses a template that writes none."""
        if turns.roles:
            raise InvalidArgument("tools", _names(tools), "declare them before the first message")
        declared = replace(turns, tools=tools)
        plain, user = replace(turns, roles=("user",)), replace(declared, roles=("user",))
        if self._render(plain, generation=False) == self._render(user, generation=False):
            raise InvalidArgument("tools", _names(tools), _NO_TOOLS)
        return declared

    def render(self, conversation: Conversation) -> str:
        conversation = self._adapted(conversation)
        messages = conversation.messages
        if conversation.continue_final_message:
            last = messages[-1]
            messages = [*messages[:-1], {**last, "content": last["content"] + TAIL}]
        given = {**conversation.template_kwargs, **self._variables}
        try:
            rendered = self._template.render(
                **{
                    **given,
                    "messages": messages,
                    "tools": conversation.tools,
                    "documents": given.get("documents"),
                    "add_generation_prompt": conversation.add_generation_prompt,
                }
            )
        except _TEMPLATE_ERRORS as error:
            roles = [message["role"] for message in messages]
            raise InvalidArgument(
                "messages",
                roles,
                f"the model's chat template refuses them: {error}; use roles and an order that "
                "it accepts",
            ) from None
        if conversation.continue_final_message:
            rendered, found, _ = rendered.rpartition(TAIL)
            if not found:
                raise InvalidArgument(
                    "continue_final_message", True, "the chat template drops the final message"
                )
        return rendered

    def _adapted(self, conversation: Conversation) -> Conversation:
        """Return the conversation without what the template would drop or refuse."""
        style = FORMATS[self.tool_format]
        if "developer" not in self.source:
            conversation = without_developer(conversation)
        if conversation.tools is not None and not self._writes("tools"):
            conversation = with_written_tools(conversation, style)
        has_calls = any("tool_calls" in message for message in conversation.messages)
        if has_calls and not self._writes("calls"):
            conversation = with_written_calls(conversation, style)
        has_results = any(message["role"] == "tool" for message in conversation.messages)
        if has_results and not self._writes("results"):
            conversation = with_results_as_user(conversation)
        return with_short_ids(conversation) if self.tool_format == "mistral" else conversation

    def _writes(self, what: str) -> bool:
        """Whether the template writes tools, calls or results of a conversation; tried once."""
        if what not in self._knows:
            name = _placeholder(0)
            function = {"name": name, "description": "", "parameters": {"type": "object"}}
            called = {"name": name, "arguments": {}}
            call = {"id": _CALL_ID, "type": "function", "function": called}
            messages: list[dict[str, Any]] = [{"role": "user", "content": "?"}]
            if what != "tools":
                messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            if what == "results":
                call["function"] = {**called, "name": "f"}
                messages.append({"role": "tool", "content": name, "tool_call_id": _CALL_ID})
            tools = [{"type": "function", "function": function}] if what == "tools" else None
            try:
                written = name in self._template.render(
                    messages=messages,
                    tools=tools,
                    documents=None,
                    add_generation_prompt=False,
                    **self._variables,
                )
            except _TEMPLATE_ERRORS:
                written = False
            self._knows[what] = written
        return self._knows[what]

    def _generation_prompt(self, turns: Turns) -> str | None:
        """What follows the last content when an assistant is to speak; None when the template says
        nothing."""
        try:
            rendered = self._render(turns, generation=True)
            without = self._render(turns, generation=False)
        except InvalidArgument:
            return None
        if rendered == without:
            return None
        if not turns.roles:
            return rendered
        _, found, tail = rendered.partition(_placeholder(len(turns.roles) - 1))
        return tail if found else None

    def _before_content(self, turns: Turns) -> str:
        """What stands between the content of the last role but one and that of the last."""
        roles = turns.roles
        index = len(roles) - 1
        rendered = self._render(turns, generation=False)
        if _placeholder(index) not in rendered:
            # A system prompt may be written into the user's turn that follows it.
            followed = replace(turns, roles=(*roles, "user"))
            rendered = self._render(followed, generation=False)
        before, found, _ = rendered.partition(_placeholder(index))
        if not found:
            raise InvalidArgument("role", roles[-1], "the model's chat template leaves it out")
        if index == 0:
            return before
        _, found, between = before.rpartition(_placeholder(index - 1))
        if not found:
            raise InvalidArgument(
                "role", roles[-1], "the model's chat template drops the turn before it"
            )
        return between

    def _render(self, turns: Turns, *, generation: bool) -> str:
        key = (turns.roles, turns.tools, generation)
        rendered = self._rendered.get(key)
        if rendered is None:
            rendered = self._render_now(turns.roles, turns.tools, generation=generation)
            if len(self._rendered) >= 1024:
                self._rendered.clear()
            self._rendered[key] = rendered
        return rendered

    def _render_now(self, roles: Sequence[str], tools: str, *, generation: bool) -> str:
        try:
            try:
                return self._render_messages(_messages(roles), tools, generation)
            except jinja2.TemplateError:
                if "tool" not in roles:
                    raise
                # A template may take a result only after a message that says it is a call.
                return self._render_messages(_with_calls(roles), tools, generation)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            order = " → ".join(roles) or "no role"
            raise InvalidArgument(
                "role",
                roles[-1] if roles else "",
                f"the model's chat template refuses {order}: {error}; "
                "use roles and an order that it accepts, or plain text",
            ) from None

    def _render_messages(
        self, messages: Sequence[dict[str, Any]], tools: str, generation: bool
    ) -> str:
        return self._template.render(
            messages=messages,
            add_generation_prompt=generation,
            tools=json.loads(tools) if tools else None,
            documents=None,
            **self._variables,
        )


def end_of_turn_ids(chat: ChatFormat, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the special token that ends an assistant's turn, if there is one: a model that is done
    says it, whatever its config calls the end of a text."""
    try:
        turns = Turns()
        for role in ("user", "assistant"):
            _, turns = chat.begin(turns, role)
            markup, turns = chat.end(turns, role)
    except InvalidArgument:
        return frozenset()
    token_ids = tokenizer.encode(markup, markup=True).tolist()
    return frozenset(i for i in token_ids[:1] if tokenizer.is_special(i))


def load_chat_format(path: Path, tokenizer: Tokenizer) -> ChatFormat:
    """Return the chat format of a model directory; ``PlainFormat`` when it has no template."""
    source = _read_template(path, tokenizer.config)
    return PlainFormat() if source is None else TemplateFormat(source, tokenizer.special_tokens)


def _read_template(path: Path, tokenizer_config: dict[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = read_json(path / "chat_template.json").get("chat_template")
    template = template or tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) and template else None


def _opened(turns: Turns, role: str) -> Turns:
    if turns.is_open:
        raise InvalidArgument("role", role, f"close the open role {turns.roles[-1]!r} first")
    if not role:
        raise InvalidArgument("role", role, "name a role: system, user or assistant")
    if len(turns.roles) >= MAX_TURNS:
        raise InvalidArgument("role", role, f"a branch has at most {MAX_TURNS} roles")
    return Turns((*turns.roles, role), is_open=True, tools=turns.tools)


def _closed(turns: Turns, role: str, tail: str) -> Turns:
    if not turns.is_open or turns.roles[-1] != role:
        opened = turns.roles[-1] if turns.is_open else None
        raise InvalidArgument("role", role, f"it cannot end: the open role is {opened!r}")
    return Turns(turns.roles, tail=tail, tools=turns.tools)


def _messages(roles: Sequence[str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": _placeholder(index)} for index, role in enumerate(roles)]


def _with_calls(roles: Sequence[str]) -> list[dict[str, Any]]:
    """The messages, with those that a tool answers written as calls whose name is the content."""
    messages = _messages(roles)
    for message, follower in itertools.pairwise(messages):
        if message["role"] == "assistant" and follower["role"] == "tool":
            function = {"name": message["content"], "arguments": {}}
            message["content"] = ""
            message["tool_calls"] = [{"id": _CALL_ID, "type": "function", "function": function}]
    for message in messages:
        if message["role"] == "tool":
            message["tool_call_id"] = _CALL_ID
    return messages


def _names(tools: str) -> list[str]:
    return [definition.get("function", {}).get("name", "") for definition in json.loads(tools)]


def _placeholder(index: int) -> str:
    # Private-use characters: no template trims, escapes or contains them.
    return f"\ue000{index}\ue001"


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks training targets; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
