"""Whole conversations in OpenAI's form, made ready for a chat template.

What a user wrote stays text: a message that spells a control token (``<|im_end|>``) is marked, so
that it is tokenized as ordinary characters, while the template's own markup becomes tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from radixrt.errors import InvalidArgument
from radixrt.runtime.grammar.tool_calls import ToolFormat

MAX_MESSAGES = 4096

OPEN, CLOSE = "\U0010fffc", "\U0010fffd"
"""Private characters around text of a user that spells a control token."""

TAIL = "\U0010fffb"
"""Stands behind the text of a final message that is to be continued."""

_MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}")
_MARKS = re.compile(f"[{OPEN}{CLOSE}{TAIL}]")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


class _Fields(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages with text contents, as a template takes them; see ``Part`` for the other fields."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] = field(default_factory=dict)


def read_conversation(text: str) -> Conversation:
    """Return the conversation of a ``chat`` part. Raises ``InvalidArgument``."""
    try:
        given = msgspec.json.decode(text, type=_Fields)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument("chat", text, f"it is not valid: {error}") from None
    if not 1 <= len(given.messages) <= MAX_MESSAGES:
        raise InvalidArgument(
            "messages", f"{len(given.messages)} messages", f"give 1 to {MAX_MESSAGES}"
        )
    if given.continue_final_message and given.add_generation_prompt:
        raise InvalidArgument(
            "continue_final_message", True, "set add_generation_prompt=false with it"
        )
    return Conversation(
        [_message(index, message) for index, message in enumerate(given.messages)],
        given.tools or None,
        given.add_generation_prompt,
        given.continue_final_message,
        given.template_kwargs,
    )


def _message(index: int, given: dict[str, Any]) -> dict[str, Any]:
    where = f"messages[{index}]"
    role = given.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidArgument(f"{where}.role", role, "name a role: system, user or assistant")
    message = {name: value for name, value in given.items() if value is not None}
    message["content"] = content_text(f"{where}.content", given.get("content"))
    calls = message.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            raise InvalidArgument(f"{where}.tool_calls", calls, "use a list")
        message["tool_calls"] = [_tool_call(f"{where}.tool_calls", call) for call in calls]
        if not calls:
            del message["tool_calls"]
    return message


def content_text(where: str, content: Any) -> str:
    """Return the text of a message's content: a string, parts of text, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidArgument(where, content, "use a string or a list of text parts")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS:
            raise InvalidArgument(f"{where}.type", kind, "the model reads text; send text parts")
        text = part.get("text", part.get("refusal"))
        if not isinstance(text, str):
            raise InvalidArgument(f"{where}.text", text, "use a string")
        texts.append(text)
    return "".join(texts)


def _tool_call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidArgument(where, call, 'use {"id", "type": "function", "function": {"name"}}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # Templates write the object; clients send its text.
        try:
            parsed = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            parsed = arguments
        arguments = parsed
    return {
        "id": str(call.get("id") or ""),
        "type": "function",
        "function": {**function, "arguments": {} if arguments is None else arguments},
    }


# ---------------------------------------------------------------- for templates that know less


def without_developer(conversation: Conversation) -> Conversation:
    """Return it with what a developer says said by the system, for templates without that role."""
    return _mapped(
        conversation, lambda m: {**m, "role": "system"} if m["role"] == "developer" else m
    )


def with_written_tools(conversation: Conversation, style: ToolFormat) -> Conversation:
    """Return it with the tools described in the system message, for a template that writes none."""
    if conversation.tools is None:
        return conversation
    example = json.dumps({"name": "NAME", style.arguments: {"PARAMETER": "VALUE"}})
    lines = [
        "You may call these tools:",
        *(json.dumps(_function(tool), ensure_ascii=False) for tool in conversation.tools),
        f"A call is written as {style.opening}{example}{style.closing}",
    ]
    text = "\n".join(lines)
    messages = list(conversation.messages)
    if messages[0]["role"] == "system":
        first = messages[0]
        messages[0] = {**first, "content": f"{first['content']}\n\n{text}".strip()}
    else:
        messages.insert(0, {"role": "system", "content": text})
    return replace(conversation, messages=messages, tools=None)


def with_written_calls(conversation: Conversation, style: ToolFormat) -> Conversation:
    """Return it with earlier calls as text of their messages, for a template that writes none."""

    def written(message: dict[str, Any]) -> dict[str, Any]:
        calls = message.get("tool_calls")
        if not calls:
            return message
        bodies = [
            json.dumps(
                {
                    "name": call["function"]["name"],
                    style.arguments: call["function"]["arguments"],
                },
                ensure_ascii=False,
            )
            for call in calls
        ]
        if style.is_list:
            text = style.opening + style.between.join(bodies) + style.closing
        else:
            text = style.between.join(style.opening + body + style.closing for body in bodies)
        rest = {name: value for name, value in message.items() if name != "tool_calls"}
        return {**rest, "content": f"{message['content']}\n{text}".lstrip("\n")}

    return _mapped(conversation, written)


def with_results_as_user(conversation: Conversation) -> Conversation:
    """Return it with the results of tools said by the user, for a template without that role."""

    def said(message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] != "tool":
            return message
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": text}

    return _mapped(conversation, said)


def with_short_ids(conversation: Conversation) -> Conversation:
    """Return it with ids of nine letters and digits for calls, as Mistral's templates demand."""

    def shortened(message: dict[str, Any]) -> dict[str, Any]:
        changed = dict(message)
        if "tool_call_id" in message:
            changed["tool_call_id"] = _short_id(str(message["tool_call_id"]))
        if "tool_calls" in message:
            changed["tool_calls"] = [
                {**call, "id": _short_id(call["id"])} for call in message["tool_calls"]
            ]
        return changed

    return _mapped(conversation, shortened)


def _short_id(call_id: str) -> str:
    if len(call_id) == 9 and call_id.isalnum():
        return call_id
    return hashlib.blake2b(call_id.encode("utf-8", "replace")).hexdigest()[:9]


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    return function if isinstance(function, dict) else tool


def _mapped(
    conversation: Conversation, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> Conversation:
    return replace(conversation, messages=[change(message) for message in conversation.messages])


# ---------------------------------------------------------------- text that spells control tokens


def control_pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    """Return what finds the names of control tokens in a text; None when there are none."""
    ordered = sorted((name for name in names if name), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def marked(conversation: Conversation, controls: re.Pattern[str] | None) -> Conversation:
    """Return it with marks around whatever its texts spell of control tokens."""

    def mark(value: Any) -> Any:
        if isinstance(value, str):
            text = _MARKS.sub("", value)
            return text if controls is None else controls.sub(f"{OPEN}\\g<0>{CLOSE}", text)
        if isinstance(value, list):
            return [mark(item) for item in value]
        if isinstance(value, dict):
            return {mark(name): mark(item) for name, item in value.items()}
        return value

    return replace(
        conversation,
        messages=mark(conversation.messages),
        tools=mark(conversation.tools),
        template_kwargs=mark(conversation.template_kwargs),
    )


def pieces(rendered: str) -> list[tuple[str, bool]]:
    """Return the pieces of a rendered text and whether each is markup, in which the names of
    control tokens mean these tokens."""
    found: list[tuple[str, bool]] = []
    at = 0
    for match in _MARKED.finditer(rendered):
        found += [(rendered[at : match.start()], True), (match.group(1), False)]
        at = match.end()
    found.append((rendered[at:], True))
    return [(_MARKS.sub("", text), is_markup) for text, is_markup in found if text]
