"""Items of the Responses API as messages of a conversation."""

from __future__ import annotations

from typing import Any

import orjson

from radixrt.gateway.errors import invalid


def messages_of(instructions: str | None, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages that items are; calls that follow one another are one message. Raises
    ``ApiError``."""
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    reasoning = ""
    for index, item in enumerate(items):
        if item.get("type") == "reasoning":
            reasoning += _reasoning_text(item)
            continue
        _add(messages, f"input[{index}]", item)
        # What a model thought belongs to the message that it thought before.
        if reasoning and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("reasoning_content", reasoning)
        reasoning = ""
    return messages


def _reasoning_text(item: dict[str, Any]) -> str:
    """Return what an item says of reasoning; nothing for what is encrypted or only summed up."""
    content = item.get("content")
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _add(messages: list[dict[str, Any]], where: str, item: dict[str, Any]) -> None:
    match item.get("type", "message"):
        case "message":
            if not isinstance(item.get("role"), str):
                raise invalid(f"{where}.role", "give a role: system, user or assistant")
            messages.append({"role": item["role"], "content": item.get("content")})
        case "function_call":
            name, arguments = item.get("name"), item.get("arguments", "")
            if not isinstance(name, str) or not isinstance(arguments, str):
                raise invalid(where, "a function_call has a name and arguments, both strings")
            call = {
                "id": str(item.get("call_id") or item.get("id") or ""),
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            last = messages[-1] if messages else {}
            if last.get("role") == "assistant":
                last.setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        case "function_call_output":
            output = item.get("output")
            if not isinstance(output, str | list):
                output = orjson.dumps(output).decode()
            call_id = str(item.get("call_id") or "")
            messages.append({"role": "tool", "tool_call_id": call_id, "content": output})
        case kind:
            raise invalid(
                f"{where}.type",
                f"{str(kind)[:60]!r} is not supported; send messages, function calls and their "
                "outputs",
                "unsupported",
            )
