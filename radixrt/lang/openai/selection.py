"""``select`` at an endpoint: by the options' logprobs where it tells them, else by having one of
them generated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import orjson

from radixrt import likelihood
from radixrt.errors import BadRequest, Unsupported
from radixrt.lang.openai.generation import Generated, added, generate
from radixrt.lang.openai.http import Http
from radixrt.lang.openai.prompt import Prompt
from radixrt.lang.openai.request import Served
from radixrt.lang.openai.scoring import Logprobs, Scorer
from radixrt.protocol import Chosen, Constraint, Generate, Sampling, Select, Usage

_MAX_OPTION_TOKENS = 256
"""Of an option that is generated; it ends where the option ends."""


@dataclass(slots=True)
class Selector:
    """Selections at one endpoint. What it was found to be able to do is remembered."""

    http: Http
    served: Served
    echoes: bool | None = None
    """Whether it returns a prompt's logprobs; None before that was tried."""

    async def choose(self, prompt: Prompt, op: Select, salt: str) -> tuple[Chosen, Prompt]:
        """Return the choice, and the prompt with it. Raises ``CallFailed``."""
        texts, usage = await self._texts(prompt, op, salt)
        if self._way(prompt) == "generation":
            chosen = await self._by_generation(prompt, op, texts, salt)
        else:
            scorer = Scorer(self.http, self.served, salt)
            try:
                chosen = await self._by_logprobs(scorer, prompt, op, texts)
                self.echoes = True
            except (Unsupported, BadRequest):
                if self.echoes or self.served.settings.select == "logprobs":
                    raise
                self.echoes = False
                chosen = await self._by_generation(prompt, op, texts, salt)
        chosen = replace(chosen, usage=added(usage, chosen.usage))
        return chosen, prompt.grow("chosen", chosen.text)

    def _way(self, prompt: Prompt) -> Literal["logprobs", "generation"]:
        asked = self.served.settings.select
        if asked != "auto":
            return asked
        scorer = Scorer(self.http, self.served, "")
        echoes = self.served.dialect.echoes if self.echoes is None else self.echoes
        return "logprobs" if scorer.can_score(prompt) and echoes is not False else "generation"

    async def _texts(self, prompt: Prompt, op: Select, salt: str) -> tuple[list[str], Usage]:
        """The options' texts; one that is a constraint is the likeliest text under it."""
        texts, usage = [], Usage()
        for option in op.options:
            if isinstance(option, str):
                texts.append(option)
                continue
            if self._way(prompt) == "generation":
                raise Unsupported(
                    "a choice that is a regex or a type is weighed by its logprobs, which this "
                    "endpoint does not tell; give the choices as text"
                )
            constraint = replace(option, finish="valid")
            found = await self._generated(prompt, constraint, op.max_tokens, salt)
            texts.append(found.outputs[0].text)
            usage = added(usage, found.usage)
        return texts, usage

    async def _generated(
        self, prompt: Prompt, constraint: Constraint, max_tokens: int, salt: str
    ) -> Generated:
        greedy = Sampling(max_tokens=max_tokens, temperature=0.0)
        op = Generate(0, 0, greedy, constraint)
        return await generate(self.http, self.served, prompt, op, salt, lambda *_: None)

    async def _by_logprobs(
        self, scorer: Scorer, prompt: Prompt, op: Select, texts: list[str]
    ) -> Chosen:
        scored = await scorer.score(prompt, texts)
        alone: tuple[Logprobs, ...] = ()
        usage = scored.usage
        if op.method == "unconditional_likelihood":
            without = await scorer.score(None, texts)
            alone, usage = without.logprobs, added(usage, without.usage)
        index, scores = likelihood.choose(
            op.method, [_values(row) for row in scored.logprobs], [_values(row) for row in alone]
        )
        return Chosen(op.call, index, scores, scored.logprobs, usage, alone, texts[index])

    async def _by_generation(
        self, prompt: Prompt, op: Select, texts: list[str], salt: str
    ) -> Chosen:
        if op.method == "unconditional_likelihood":
            raise Unsupported(
                "unconditional_likelihood_normalized compares logprobs, which this endpoint does "
                "not tell; use another choices_method, or a server that echoes logprobs"
            )
        options = list(dict.fromkeys(texts))
        constraint = Constraint("choices", orjson.dumps(options).decode())
        found = await self._generated(prompt, constraint, _MAX_OPTION_TOKENS, salt)
        index = texts.index(found.outputs[0].text)
        # What the others would have scored is not known: only that they were not chosen.
        scores = tuple(0.0 if i == index else float("-inf") for i in range(len(texts)))
        none: tuple[Logprobs, ...] = ((),) * len(texts)
        return Chosen(op.call, index, scores, none, found.usage, (), texts[index])


def _values(row: Logprobs) -> list[float]:
    """The logprobs of an option; its first token has none when nothing stands before it."""
    return [0.0 if entry.logprob is None else entry.logprob for entry in row]
