"""Reading a chat's answer out of a text that grows: reasoning, then text or calls."""

from __future__ import annotations

from typing import Any

from radixrt.gateway.reasoning import Reasoning, ReasoningPiece, ReasoningReader
from radixrt.gateway.tool_stream import Piece, TextPiece, ToolReader
from radixrt.gateway.tools import ToolUse

AnswerPiece = ReasoningPiece | Piece


def answer_reader(
    reasoning: Reasoning | None, tools: ToolUse | None, style: dict[str, Any]
) -> AnswerReader | None:
    """Return what reads an output; None where all of it is the answer's text. ``style``: how calls
    are written, as the runtime describes it."""
    if reasoning is None and tools is None:
        return None
    return AnswerReader(
        None if reasoning is None else ReasoningReader(reasoning),
        None if tools is None else ToolReader(style, free=tools.choice == "auto"),
    )


class AnswerReader:
    """Takes a generated text in pieces; gives what it says in pieces."""

    def __init__(self, reasoning: ReasoningReader | None, tools: ToolReader | None) -> None:
        """None for a text in which there is no reasoning, or there are no calls."""
        self._reasoning = reasoning
        self._tools = tools

    @property
    def is_reasoning(self) -> bool:
        """Whether the text so far ends within the reasoning."""
        return self._reasoning is not None and self._reasoning.is_reasoning

    def feed(self, text: str) -> list[AnswerPiece]:
        """Take more of the text."""
        reasoned, said = ("", text) if self._reasoning is None else self._reasoning.feed(text)
        return self._pieces(reasoned, said)

    def finish(self) -> list[AnswerPiece]:
        """The text is over: return what was held back."""
        reasoned, said = ("", "") if self._reasoning is None else self._reasoning.finish()
        pieces = self._pieces(reasoned, said)
        return pieces if self._tools is None else [*pieces, *self._tools.finish()]

    def _pieces(self, reasoned: str, said: str) -> list[AnswerPiece]:
        pieces: list[AnswerPiece] = [ReasoningPiece(reasoned)] if reasoned else []
        if self._tools is not None:
            return [*pieces, *self._tools.feed(said)]
        return [*pieces, TextPiece(said)] if said else pieces
