"""Log probabilities of text that is given, as far as an endpoint tells them.

``/completions`` with ``echo`` returns those of its prompt. Where a server tokenizes for us, prompts
are sent as token ids, so that what is scored is exactly what was appended. Elsewhere they are sent
as text, and a token that spells both the end of the prompt and the beginning of what follows counts
for the latter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from radixrt.errors import EngineFault, Unsupported
from radixrt.lang.openai.answer import UNKNOWN_ID, reading, usage_of
from radixrt.lang.openai.http import Http
from radixrt.lang.openai.prompt import Prompt
from radixrt.lang.openai.request import Served
from radixrt.protocol import TokenLogprob, Usage

Logprobs = tuple[TokenLogprob, ...]

_NO_ECHO = (
    "this endpoint does not return logprobs of a prompt (/completions with echo); use "
    "select='generation', or a server that does (vLLM, SGLang, radixrt)"
)


@dataclass(frozen=True, slots=True)
class Scored:
    """The log probabilities of each text's tokens after the prompt, and what they cost."""

    logprobs: tuple[Logprobs, ...]
    usage: Usage


class Scorer:
    """Scores texts at one endpoint; ``salt`` is the branch's cache."""

    def __init__(self, http: Http, served: Served, salt: str) -> None:
        self._http = http
        self._served = served
        self._salt = salt

    def can_score(self, prompt: Prompt) -> bool:
        """Whether the endpoint's dialect lets texts behind this prompt be scored."""
        dialect = self._served.dialect
        return dialect.tokenizes or not self._served.is_chat(prompt)

    async def score(self, prompt: Prompt | None, texts: Sequence[str]) -> Scored:
        """Return the logprobs of each text behind the prompt, or behind nothing (the first one has
        none then). Raises ``Unsupported`` when the endpoint gives none."""
        if self._served.dialect.tokenizes:
            before = [] if prompt is None else await self._prompt_ids(prompt)
            prompts: list[Any] = [[*before, *await self._text_ids(text)] for text in texts]
            rows, usage = await self._echoed(prompts)
            tails = tuple(row.tail_from_token(len(before)) for row in rows)
        else:
            if prompt is not None and self._served.is_chat(prompt):
                raise Unsupported(f"behind chat messages {_NO_ECHO}")
            lead = "" if prompt is None else prompt.text()
            rows, usage = await self._echoed([lead + text for text in texts])
            tails = tuple(
                row.tail_from_char(len(lead), len(lead) + len(text))
                for row, text in zip(rows, texts, strict=True)
            )
        if any(not tail for tail in tails):
            raise Unsupported(_NO_ECHO)
        return Scored(tails, usage)

    async def prompt_logprobs(self, prompt: Prompt, start: int) -> Logprobs:
        """Return the logprobs of a prompt's tokens from number ``start`` on."""
        if self._served.dialect.tokenizes:
            rows, _ = await self._echoed([await self._prompt_ids(prompt)])
        elif self._served.is_chat(prompt):
            raise Unsupported(f"logprob_start_len: behind chat messages {_NO_ECHO}")
        else:
            rows, _ = await self._echoed([prompt.text()])
        # What was generated behind the prompt is not asked for.
        return rows[0].entries[start : rows[0].num_prompt]

    async def _echoed(self, prompts: list[Any]) -> tuple[list[_Echo], Usage]:
        body: dict[str, Any] = {
            "model": self._served.model,
            "prompt": prompts,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": 1,
            "echo": True,
        }
        if self._salt:
            body[self._served.dialect.cache_field] = self._salt
        data = await self._http.post(self._served.url("completions"), body)
        with reading(data):
            choices = sorted(data["choices"], key=lambda choice: choice.get("index", 0))
            if len(choices) != len(prompts):
                raise EngineFault(f"{len(prompts)} prompts were answered by {len(choices)} choices")
            if any(not choice.get("logprobs") for choice in choices):
                raise Unsupported(_NO_ECHO)
            rows = [_echo(choice["logprobs"]) for choice in choices]
            return rows, usage_of(data.get("usage") or {})

    async def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if not self._served.is_chat(prompt):
            return await self._tokenize({"prompt": prompt.text(), "add_special_tokens": True})
        chat = prompt.chat()
        body: dict[str, Any] = {
            "messages": list(chat.messages),
            "add_generation_prompt": not chat.is_continued,
            "continue_final_message": chat.is_continued,
        }
        if prompt.tools:
            body["tools"] = prompt.definitions()
        return await self._tokenize(body)

    async def _text_ids(self, text: str) -> list[int]:
        return await self._tokenize({"prompt": text, "add_special_tokens": False})

    async def _tokenize(self, body: dict[str, Any]) -> list[int]:
        url = f"{self._served.settings.server_url}/tokenize"
        data = await self._http.post(url, {"model": self._served.model, **body})
        with reading(data):
            return [int(token) for token in data["tokens"]]


@dataclass(frozen=True, slots=True)
class _Echo:
    """The tokens of a prompt and of the one token generated behind it, as they came back."""

    entries: Logprobs
    offsets: tuple[int, ...]

    @property
    def num_prompt(self) -> int:
        return len(self.entries) - 1

    def tail_from_token(self, start: int) -> Logprobs:
        """The prompt's tokens from number ``start`` on."""
        return self.entries[start : self.num_prompt]

    def tail_from_char(self, start: int, end: int) -> Logprobs:
        """The tokens that spell any of characters ``[start, end)``."""
        ends = (*self.offsets[1:], end)
        return tuple(
            entry
            for entry, begins, stops in zip(self.entries, self.offsets, ends, strict=False)
            if begins < end and stops > start
        )


def _echo(raw: dict[str, Any]) -> _Echo:
    entries = tuple(
        TokenLogprob(logprob, UNKNOWN_ID, token)
        for token, logprob in zip(raw["tokens"], raw["token_logprobs"], strict=True)
    )
    offsets = raw.get("text_offset")
    if offsets is None:  # they follow from the tokens where a server leaves them out
        offsets, at = [], 0
        for entry in entries:
            offsets.append(at)
            at += len(entry.text)
    return _Echo(entries, tuple(offsets))
