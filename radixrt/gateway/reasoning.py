"""Reasoning apart from the answer: which conversations have some, and where it ends in a text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

from radixrt.gateway.errors import ApiError
from radixrt.gateway.link import RuntimeLink
from radixrt.gateway.messages import chat_part
from radixrt.gateway.tool_stream import overlap
from radixrt.protocol import Constraint, Tokenize

_MAX_PROMPTS = 256
"""Different ``chat_template_kwargs`` whose prompts are remembered."""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How an answer reasons: between which tags, and whether the prompt has begun it.

    ``closing_id`` is the token of the closing tag, where it is one.
    """

    opening: str
    closing: str
    closing_id: int | None = None
    is_open: bool = False

    def unbound(self, constraint: Constraint, *, is_free_first: bool) -> Constraint:
        """Return a constraint that binds the answer and not the reasoning before it.

        ``is_free_first``: free text may come before what it binds, or instead of it; then it has to
        know only of reasoning that there is for sure.
        """
        if is_free_first and not self.is_open:
            return constraint
        return replace(constraint, after=self.closing)

    def num_tokens(self, token_ids: tuple[int, ...], *, is_whole: bool) -> int:
        """Return how many tokens of an answer are reasoning; ``is_whole``: it never ended."""
        if is_whole:
            return len(token_ids)
        return token_ids.index(self.closing_id) + 1 if self.closing_id in token_ids else 0


class ReasoningPrompts:
    """Says how the answers to conversations reason. What a template puts at the beginning of an
    answer depends on its arguments; the runtime is asked once for each."""

    def __init__(self, link: RuntimeLink) -> None:
        self._link = link
        self._endings: dict[bytes, str] = {}
        link.on_welcome(self._endings.clear)

    async def of(
        self,
        messages: list[dict[str, Any]],
        template_kwargs: dict[str, Any],
        *,
        opens_answer: bool = True,
        is_continued: bool = False,
    ) -> Reasoning | None:
        """Return how the answer to a conversation reasons; None when it does not.

        ``opens_answer``: the template's beginning of an answer follows the messages;
        ``is_continued``: the last message goes on. Raises ``ApiError`` while the runtime is away.
        """
        tags = self._link.tokenizer.get("reasoning")
        if not tags:
            return None
        before = ""
        if is_continued:
            content = messages[-1].get("content")
            before = content if isinstance(content, str) else ""
        elif opens_answer:
            before = await self._ending(template_kwargs)
        opened, closed = before.rfind(tags["opening"]), before.rfind(tags["closing"])
        if closed > opened or (is_continued and opened < 0):
            return None
        return Reasoning(**tags, is_open=opened > closed)

    async def _ending(self, template_kwargs: dict[str, Any]) -> str:
        """Return what the template writes after a user's message."""
        key = orjson.dumps(template_kwargs, option=orjson.OPT_SORT_KEYS)
        if key not in self._endings:
            question = "?"
            part = chat_part(
                [{"role": "user", "content": question}], None, template_kwargs=template_kwargs
            )
            try:
                data = await self._link.ask(lambda call: Tokenize(call, (part,)))
            except ApiError as error:
                if error.status != 400:
                    raise
                return ""  # the conversation itself will be refused
            if len(self._endings) >= _MAX_PROMPTS:
                self._endings.clear()
            self._endings[key] = "".join(data["tokens"]).rpartition(question)[2]
        return self._endings[key]


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """More of the reasoning."""

    text: str


class ReasoningReader:
    """Takes a generated text in pieces; gives what of it is reasoning and what is answer.

    Blanks around the reasoning are no part of either.
    """

    def __init__(self, reasoning: Reasoning) -> None:
        self._opening, self._closing = reasoning.opening, reasoning.closing
        self._state: Literal["begin", "reasoning", "answer begins", "answer"] = "begin"
        if reasoning.is_open:
            self._state = "reasoning"
        self._held = ""
        self._has_reasoned = False

    @property
    def is_reasoning(self) -> bool:
        """Whether the text so far ends within the reasoning."""
        return self._state == "reasoning"

    def feed(self, text: str) -> tuple[str, str]:
        """Take more of the text; return what it adds to the reasoning and to the answer."""
        self._held += text
        if self._state == "begin":
            start = self._held.lstrip()
            if self._opening.startswith(start):
                return "", ""
            if start.startswith(self._opening):
                self._state, self._held = "reasoning", start[len(self._opening) :]
            else:
                self._state = "answer"
        reasoned = self._read_reasoning() if self._state == "reasoning" else ""
        return reasoned, self._read_answer()

    def finish(self) -> tuple[str, str]:
        """The text is over: return what was held back, as ``feed``."""
        held, self._held = self._held, ""
        if self._state == "reasoning":
            return held.rstrip() if self._has_reasoned else held.strip(), ""
        return "", held if self._state == "begin" else ""

    def _read_reasoning(self) -> str:
        held = self._held if self._has_reasoned else self._held.lstrip()
        at = held.find(self._closing)
        if at >= 0:
            self._state, self._held = "answer begins", held[at + len(self._closing) :]
            return held[:at].rstrip()
        end = len(held) - overlap(held, self._closing)
        said = held[:end].rstrip()
        self._held = held[len(said) :]
        self._has_reasoned |= bool(said)
        return said

    def _read_answer(self) -> str:
        if self._state == "answer begins":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "answer"
        if self._state != "answer":
            return ""
        said, self._held = self._held, ""
        return said
