"""A branch's transcript, and the two forms in which it is sent."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

from radixrt.errors import InvalidArgument, Unsupported
from radixrt.protocol import Part, Span, ToolCall

Kind = Literal["text", "generated", "chosen", "role_begin", "role_end"]


@dataclass(frozen=True, slots=True)
class Item:
    """Text of a branch, or where a message begins and ends (``text`` is its role then).

    ``calls`` are the tool calls of a generation; ``content`` its text without them.
    """

    kind: Kind
    text: str
    calls: tuple[ToolCall, ...] = ()
    content: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages to send. ``is_continued``: the last one is the assistant's and goes on."""

    messages: tuple[dict[str, Any], ...]
    is_continued: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a branch holds. Immutable: a fork shares it. ``tools`` is the JSON text of the
    definitions that were declared."""

    items: tuple[Item, ...] = ()
    role: str = ""
    tools: str = ""
    has_roles: bool = field(default=False)

    # ------------------------------------------------------------ growing

    def append(self, part: Part) -> Prompt:
        """Return the prompt with a part. Raises ``InvalidArgument`` or ``Unsupported``."""
        match part.kind:
            case "text":
                return self._with(Item("text", part.text))
            case "role_begin":
                if self.role:
                    raise InvalidArgument("role", part.text, f"close the {self.role} message first")
                grown = self._with(Item("role_begin", part.text))
                return replace(grown, role=part.text, has_roles=True)
            case "role_end":
                if self.role != part.text:
                    raise InvalidArgument("role", part.text, f"open is: {self.role or 'none'}")
                return replace(self._with(Item("role_end", part.text)), role="")
            case "tools":
                if self.has_roles:
                    raise InvalidArgument("tools", "…", "declare them before the first message")
                return replace(self, tools=part.text)
            case _:
                raise Unsupported(
                    f"parts of kind {part.kind!r} cannot be sent to an OpenAI endpoint; append text"
                )

    def grow(
        self,
        kind: Literal["generated", "chosen"],
        text: str,
        calls: tuple[ToolCall, ...] = (),
        content: str = "",
    ) -> Prompt:
        """Return the prompt with what a model wrote."""
        return self._with(Item(kind, text, calls, content))

    def _with(self, item: Item) -> Prompt:
        return replace(self, items=(*self.items, item))

    # ------------------------------------------------------------ being sent

    def text(self) -> str:
        """The transcript as one text; roles as plain lines."""
        return "".join(span.text for span in self.spans())

    def spans(self) -> tuple[Span, ...]:
        """The transcript span by span. How many tokens a span has is not known: 0."""
        return tuple(Span(*_shown(item), num_tokens=0, cached_tokens=0) for item in self.items)

    def chat(self) -> Chat:
        """The transcript as messages. Text without any role is one message of the user's.

        Raises ``Unsupported`` for text outside of messages, and for a generation that is not to be
        an assistant's.
        """
        if not self.has_roles:
            return Chat(({"role": "user", "content": self.text()},), is_continued=False)
        if self.role != "assistant":
            where = f"in a {self.role} message" if self.role else "outside of any message"
            raise Unsupported(
                f"a chat endpoint generates assistant messages, and this is {where}; write "
                "rt.assistant(rt.gen(…)), or use mode='completions'"
            )
        messages = list(self._messages())
        last = messages[-1]
        if not last["content"] and not last.get("tool_calls"):
            return Chat(tuple(messages[:-1]), is_continued=False)
        return Chat(tuple(messages), is_continued=True)

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        unanswered: deque[str] = deque()
        is_open = False
        for item in self.items:
            if item.kind == "role_begin":
                is_open = True
                messages.append({"role": item.text, "content": ""})
                if item.text == "tool":
                    # Results answer the calls in their order.
                    answered = unanswered.popleft() if unanswered else "call_0"
                    messages[-1]["tool_call_id"] = answered
            elif item.kind == "role_end":
                is_open = False
            elif is_open:
                messages[-1]["content"] += item.content if item.calls else item.text
                for call in item.calls:
                    identity = f"call_{sum(len(m.get('tool_calls', ())) for m in messages)}"
                    unanswered.append(identity)
                    messages[-1].setdefault("tool_calls", []).append(_sent(identity, call))
            elif item.text.strip():
                raise Unsupported(
                    f"{item.text[:40]!r} stands outside of the messages of a chat; put it into a "
                    "role, or use mode='completions'"
                )
        return messages

    def definitions(self) -> list[Any]:
        """The tools that were declared, in OpenAI's form."""
        found = orjson.loads(self.tools) if self.tools else []
        return list(found)


def _shown(item: Item) -> tuple[Literal["text", "role", "generated", "chosen"], str]:
    match item.kind:
        case "role_begin":
            return "role", f"{item.text.capitalize()}:" + ("" if item.text == "assistant" else " ")
        case "role_end":
            return "role", "\n"
        case _:
            return item.kind, item.text


def _sent(identity: str, call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": identity, "type": "function", "function": function}
