"""Reading what an endpoint answers, whole or in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from radixrt.errors import EngineFault
from radixrt.protocol import FinishReason, TokenLogprob, Usage

UNKNOWN_ID = -1
"""The id of a token that an endpoint names by its text alone."""

TopLogprobs = tuple[TokenLogprob, ...]

_FINISH = {"length": "length", "content_filter": "abort", "abort": "abort"}


@dataclass(slots=True)
class Piece:
    """New text of a choice, with the logprobs of its tokens where they were asked for."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    top_logprobs: tuple[TopLogprobs, ...] = ()


@dataclass(slots=True)
class Choice:
    """One of an answer's texts, gathered from one piece or many."""

    text: str = ""
    finish: str = ""
    matched: str | int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    refusal: str = ""

    def add(self, raw: dict[str, Any]) -> Piece:
        """Take a choice, or a piece of one, as the endpoint sent it; return what is new."""
        said = raw.get("message") or raw.get("delta")
        if said is None:
            said = {"content": raw["text"]}
        piece = Piece(said.get("content") or "", *_logprobs(raw.get("logprobs")))
        self.text += piece.text
        self.logprobs += piece.logprobs
        self.top_logprobs += piece.top_logprobs
        self.token_ids += raw.get("token_ids") or ()
        self.refusal += said.get("refusal") or ""
        for position, call in enumerate(said.get("tool_calls") or ()):
            known = self.calls.setdefault(call.get("index", position), {"name": "", "text": ""})
            function = call.get("function") or {}
            known["name"] += function.get("name") or ""
            known["text"] += function.get("arguments") or ""
        if raw.get("finish_reason"):
            self.finish = str(raw["finish_reason"])
        matched = raw.get("stop_reason", raw.get("matched_stop"))
        if isinstance(matched, str | int):
            self.matched = matched
        return piece

    @property
    def finish_reason(self) -> FinishReason:
        kind: Any = _FINISH.get(self.finish, "stop")
        return FinishReason(kind, self.matched if kind == "stop" else None)


@dataclass(slots=True)
class Answer:
    """The choices and the token counts of one answer."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def add(self, data: Any, emit: Callable[[int, Piece], None] | None = None) -> None:
        """Take an answer or one of its events; ``emit`` is told what is new. Raises
        ``EngineFault`` for what is not in OpenAI's form."""
        with reading(data):
            for position, raw in enumerate(data.get("choices") or ()):
                index = raw.get("index", position)
                piece = self.choices.setdefault(index, Choice()).add(raw)
                if emit is not None:
                    emit(index, piece)
            if data.get("usage"):
                self.usage = usage_of(data["usage"])


def usage_of(raw: dict[str, Any]) -> Usage:
    """The token counts of an answer; what it does not tell is 0."""
    prompt, completion = raw.get("prompt_tokens") or 0, raw.get("completion_tokens") or 0
    details = raw.get("prompt_tokens_details") or {}
    cached = min(details.get("cached_tokens") or 0, prompt)
    return Usage(prompt, cached, prompt - cached, 0, completion)


@contextmanager
def reading(data: Any) -> Iterator[None]:
    """Turn what goes wrong with an answer's form into one error that shows it."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise EngineFault(
            f"the endpoint's answer is not in OpenAI's form ({error!r}): {str(data)[:200]}"
        ) from error


def _logprobs(raw: Any) -> tuple[tuple[TokenLogprob, ...], tuple[TopLogprobs, ...]]:
    """The logprobs of a choice: the chat form is a list of entries, the other one of columns."""
    if not raw:
        return (), ()
    if "content" in raw:
        entries = raw["content"] or ()
        return (
            tuple(_entry(entry) for entry in entries),
            tuple(tuple(map(_entry, entry.get("top_logprobs") or ())) for entry in entries),
        )
    tokens = tuple(
        TokenLogprob(logprob, UNKNOWN_ID, token)
        for token, logprob in zip(raw["tokens"], raw["token_logprobs"], strict=True)
    )
    top = tuple(
        tuple(TokenLogprob(logprob, UNKNOWN_ID, token) for token, logprob in (row or {}).items())
        for row in raw.get("top_logprobs") or ()
    )
    return tokens, top


def _entry(raw: dict[str, Any]) -> TokenLogprob:
    return TokenLogprob(raw["logprob"], UNKNOWN_ID, raw["token"])
