"""Messages of a conversation on their way into a prompt."""

from __future__ import annotations

from typing import Any

import orjson

from radixrt.gateway.errors import invalid
from radixrt.protocol import Part

_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def checked_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages that are texts, with the old forms of calls in their new ones.

    Raises ``ApiError``.
    """
    if not messages:
        raise invalid("messages", "give at least one message")
    return [_checked(index, message) for index, message in enumerate(messages)]


def _checked(index: int, message: dict[str, Any]) -> dict[str, Any]:
    where = f"messages[{index}]"
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise invalid(f"{where}.role", "give a role: system, user, assistant or tool")
    content = message.get("content")
    if isinstance(content, list):
        for number, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(part, str) and kind not in _TEXT_PARTS:
                raise invalid(
                    f"{where}.content[{number}].type",
                    f"{str(kind)[:60]!r} is not supported; the model reads text",
                    "unsupported",
                )
    elif content is not None and not isinstance(content, str):
        raise invalid(f"{where}.content", "use a string or a list of parts")
    message = {name: value for name, value in message.items() if value is not None}
    reasoning = message.pop("reasoning", None)  # vLLM's newer name
    if "reasoning_content" not in message and isinstance(reasoning, str):
        message["reasoning_content"] = reasoning
    if not isinstance(message.get("reasoning_content", ""), str):
        raise invalid(f"{where}.reasoning_content", "use a string")
    if role == "function":
        return {**message, "role": "tool", "tool_call_id": message.get("name", "")}
    call = message.pop("function_call", None)
    if isinstance(call, dict) and "tool_calls" not in message:
        name = str(call.get("name", ""))
        message["tool_calls"] = [{"id": name, "type": "function", "function": call}]
    return message


def chat_part(
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    template_kwargs: dict[str, Any] | None = None,
) -> Part:
    """Return the part of a prompt that a conversation is."""
    data = {
        "messages": messages,
        "tools": tools,
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": continue_final_message,
        "template_kwargs": template_kwargs or {},
    }
    return Part("chat", orjson.dumps(data).decode())
