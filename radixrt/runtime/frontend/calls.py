"""Calls: what a client waits for. Each ends in exactly one message.

``GenerateCall`` gathers the outputs of a generation, ``SelectCall`` turns scores into a choice.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from radixrt.errors import InvalidArgument
from radixrt.likelihood import choose
from radixrt.protocol import (
    Chosen,
    Chunk,
    Constraint,
    DescribeTokenizer,
    Detokenize,
    Explain,
    Finished,
    Flush,
    Generate,
    Inspect,
    Read,
    Restore,
    Sampling,
    Save,
    Select,
    Stats,
    Tokenize,
    TokenLogprob,
    Usage,
)
from radixrt.runtime.frontend.branches import Branch, Segment
from radixrt.runtime.frontend.constraints import grammar_spec, healing_spec
from radixrt.runtime.frontend.output_stream import OutputStream, top_entries
from radixrt.runtime.frontend.sessions import Session
from radixrt.runtime.frontend.stops import compile_patterns
from radixrt.runtime.tokenizer import Detokenizer, Tokenizer
from radixrt.runtime.wire import (
    Done,
    EngineUsage,
    GrammarSpec,
    Run,
    Sampled,
    Score,
    Scored,
    TokenSampling,
    pack_ids,
)

TokenIds = NDArray[np.int32]

_CONTEXT_TOKENS = 6
"""Tokens before an output that decide how its first one is spelled."""


@dataclass(slots=True, eq=False)
class Call:
    """A call from its arrival to its one answer. ``arrived``, ``deadline``: monotonic seconds.

    ``run_ids`` are the engine's calls that work for it; ``prompt`` the segment they follow.
    """

    session: Session
    id: int
    branch: Branch | None
    deadline: float
    run_ids: list[int] = field(default_factory=list)
    prompt: Segment | None = None
    is_over: bool = False
    failure: str = ""
    arrived: float = 0.0


@dataclass(slots=True, eq=False)
class QuestionCall(Call):
    """What is answered by ``Reply``."""

    op: (
        Read
        | Explain
        | Save
        | Restore
        | Flush
        | Stats
        | Tokenize
        | Detokenize
        | DescribeTokenizer
        | Inspect
    ) = field(kw_only=True)


@dataclass(slots=True, eq=False)
class GenerateCall(Call):
    """A ``Generate``; ``start`` begins it, ``done`` notes the end of each of its runs.

    ``extra_uids`` name the leases of outputs beside the first, which end with the call.
    ``last_tokens`` is when the latest tokens came, 0 before.
    """

    op: Generate = field(kw_only=True)
    credit: int = 0
    extra_uids: list[int] = field(default_factory=list)
    outputs: list[OutputStream] = field(default_factory=list)
    usages: list[EngineUsage] = field(default_factory=list)
    last_tokens: float = 0.0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    prompt_tops: tuple[tuple[TokenLogprob, ...], ...] = ()

    def fit(self, room: int) -> None:
        """Decide how many tokens "as many as there is room for" are."""
        if self.op.sampling.max_tokens is None:
            sampling = replace(self.op.sampling, max_tokens=max(room, 1))
            self.op = replace(self.op, sampling=sampling)

    def start(
        self,
        prompt: Segment,
        run_ids: Sequence[int],
        branch_uids: Sequence[int],
        tokenizer: Tokenizer,
        end_ids: frozenset[int],
        deadline_s: float,
        tool_format: str = "hermes",
        heal: str = "",
    ) -> list[Run]:
        """Return the engine's calls, one an output; raises ``InvalidArgument``.

        ``tool_format``: the one that the model's template teaches. ``heal``: the text at the end of
        the prompt that was taken back from it.
        """
        sampling = self.op.sampling
        branch = self.branch
        assert branch is not None
        patterns = compile_patterns(sampling.stop_regex)
        ends = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            ends |= end_ids
        token_ids = prompt.flat()
        context = token_ids[-_CONTEXT_TOKENS:].tolist()
        packed = pack_ids(token_ids)
        seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
        grammar = self._grammar(tool_format, heal)
        self.prompt = prompt
        self.credit += self.op.credit
        self.outputs = [
            OutputStream(i, self.op, tokenizer, context, patterns, ends, len(heal))
            for i in range(sampling.n)
        ]
        return [
            Run(
                id=run_id,
                branch=uid,
                token_ids=packed,
                sampling=_token_sampling(self.op, (seed + index) % 2**63, ends, index),
                grammar=grammar,
                namespace=branch.salt,
                deadline_s=deadline_s,
                pause_s=self.op.pause_s,
                family=branch.family,
                is_cached=branch.is_cached,
            )
            for index, (run_id, uid) in enumerate(zip(run_ids, branch_uids, strict=True))
        ]

    def _grammar(self, tool_format: str, heal: str) -> GrammarSpec | None:
        op, constraint = self.op, self.op.constraint
        if constraint is None:
            return healing_spec(heal, marks=op.trace) if heal else None
        marks = op.trace or op.sampling.return_logprob or bool(constraint.fields)
        return grammar_spec(constraint, tool_format, heal=heal, marks=marks)

    def done(self, index: int, done: Done, tokenizer: Tokenizer) -> bool:
        """Note the end of output ``index``; True when it was the last one to end."""
        self.outputs[index].finish(done)
        self.usages.append(done.usage)
        if index == 0 and done.prompt_logprobs and self.prompt is not None:
            prompt_ids = self.prompt.flat()[self.op.sampling.logprob_start_len :].tolist()
            self.prompt_logprobs = tuple(
                TokenLogprob(entry.logprob, token_id, tokenizer.token_text(token_id))
                for token_id, entry in zip(prompt_ids, done.prompt_logprobs, strict=False)
            )
            if self.op.sampling.top_logprobs_num:
                self.prompt_tops = tuple(
                    top_entries(entry, tokenizer) for entry in done.prompt_logprobs
                )
        return len(self.usages) == len(self.outputs)

    def chunks(self) -> list[Chunk]:
        """Return the chunks that there is text and credit for."""
        if not self.op.stream:
            return []
        chunks = []
        for output in self.outputs:
            # The last chunk of an output needs no credit: with it the chunks make the whole text.
            if self.credit > 0 or output.is_final:
                chunk = output.chunk(self.id)
                if chunk is not None:
                    chunks.append(chunk)
                    self.credit -= 1
        return chunks

    def answer(self) -> Finished:
        """The answer, once every output has ended."""
        return Finished(
            self.id,
            tuple(output.result() for output in self.outputs),
            _merge(self.usages),
            self.prompt_logprobs,
            self.prompt_tops,
        )


@dataclass(slots=True, eq=False)
class SelectCall(Call):
    """A ``Select``. Options that are constraints are generated first, each by a run of its own;
    then ``texts`` and ``options`` (their tokens) are complete and can be scored.

    ``extra_uids`` name the leases of those runs.
    """

    op: Select = field(kw_only=True)
    options: list[TokenIds] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    extra_uids: list[int] = field(default_factory=list)
    generated: list[list[int]] = field(default_factory=list)
    ends: frozenset[int] = frozenset()
    num_running: int = 0
    num_generated: int = 0

    def generate(
        self,
        prompt: Segment,
        run_ids: Sequence[int],
        branch_uids: Sequence[int],
        tool_format: str,
        end_ids: frozenset[int],
        deadline_s: float,
    ) -> list[Run]:
        """Return the engine's calls that find the texts of options which are constraints."""
        constraints = [option for option in self.op.options if isinstance(option, Constraint)]
        self.prompt, self.ends = prompt, end_ids
        self.generated = [[] for _ in constraints]
        self.num_running = len(constraints)
        self.extra_uids = list(branch_uids)
        sampling = Sampling(max_tokens=self.op.max_tokens, temperature=0.0, seed=0)
        generate = Generate(self.id, 0, sampling)
        packed = pack_ids(prompt.flat())
        branch = self.branch
        assert branch is not None
        return [
            Run(
                id=run_id,
                branch=uid,
                token_ids=packed,
                sampling=_token_sampling(generate, 0, end_ids, 0),
                grammar=grammar_spec(replace(constraint, finish="valid"), tool_format),
                namespace=branch.salt,
                deadline_s=deadline_s,
                family=branch.family,
                is_cached=branch.is_cached,
            )
            for run_id, uid, constraint in zip(run_ids, branch_uids, constraints, strict=True)
        ]

    def take(self, index: int, sampled: Sampled) -> None:
        """Add tokens of the generated option ``index``."""
        tokens = self.generated[index]
        if sampled.rewind:
            del tokens[len(tokens) - sampled.rewind :]
        tokens += sampled.token_ids

    def settle(self, done: Done, tokenizer: Tokenizer) -> bool:
        """An option's generation ended; True when all options are known now."""
        self.num_generated += done.usage.completion
        self.num_running -= 1
        if self.num_running:
            return False
        generated = iter(self.generated)
        assert self.prompt is not None
        context = self.prompt.flat()[-_CONTEXT_TOKENS:].tolist()
        for option in self.op.options:
            if isinstance(option, str):
                self._add(option, tokenizer.encode(option))
                continue
            tokens = [token_id for token_id in next(generated) if token_id not in self.ends]
            if not tokens:
                raise InvalidArgument("options", option.text, "its most likely text is empty")
            detokenizer = Detokenizer(tokenizer, context)
            for token_id in tokens:
                detokenizer.push(token_id)
            self._add(detokenizer.text, np.array(tokens, np.int32))
        return True

    def _add(self, text: str, token_ids: TokenIds) -> None:
        self.texts.append(text)
        self.options.append(token_ids)

    def start(
        self,
        prompt: Segment,
        run_id: int,
        branch_uid: int,
        tokenizer: Tokenizer,
        deadline_s: float,
    ) -> Score:
        """Return the engine's call that scores the options."""
        self.prompt = prompt
        branch = self.branch
        assert branch is not None
        return Score(
            id=run_id,
            branch=branch_uid,
            token_ids=pack_ids(prompt.flat()),
            options=tuple(tuple(option.tolist()) for option in self.options),
            unconditional=self.op.method == "unconditional_likelihood",
            unconditional_prefix=tuple(tokenizer.fallback_start_ids.tolist()),
            namespace=branch.salt,
            deadline_s=deadline_s,
            pause_s=self.op.pause_s,
            family=branch.family,
            is_cached=branch.is_cached,
        )

    def answer(self, scored: Scored, tokenizer: Tokenizer) -> Chosen:
        """The answer to the engine's scores."""
        index, scores = choose(self.op.method, scored.logprobs, scored.unconditional)
        return Chosen(
            self.id,
            index,
            scores,
            tuple(
                tuple(_named(option, logprobs, tokenizer))
                for option, logprobs in zip(self.options, scored.logprobs, strict=True)
            ),
            self._usage(scored),
            tuple(
                # Nothing comes before the first token here, so it has no logprob.
                tuple(_named(option, (None, *islice(logprobs, 1, None)), tokenizer))
                for option, logprobs in zip(self.options, scored.unconditional, strict=False)
            ),
            self.texts[index],
        )

    def _usage(self, scored: Scored) -> Usage:
        usage = _merge([scored.usage])
        return replace(usage, completion_tokens=usage.completion_tokens + self.num_generated)


def _named(
    option: TokenIds, logprobs: Sequence[float | None], tokenizer: Tokenizer
) -> list[TokenLogprob]:
    return [
        TokenLogprob(logprob, token_id, tokenizer.token_text(token_id))
        for token_id, logprob in zip(option.tolist(), logprobs, strict=True)
    ]


def _token_sampling(op: Generate, seed: int, ends: frozenset[int], index: int) -> TokenSampling:
    sampling = op.sampling
    assert sampling.max_tokens is not None  # decided when the prompt was known
    wants_prompt = sampling.return_logprob and index == 0
    return TokenSampling(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=sampling.logit_bias,
        seed=seed,
        stop_token_ids=tuple(sorted(ends)),
        logprobs=sampling.return_logprob,
        top_logprobs_num=sampling.top_logprobs_num,
        prompt_logprobs_from=sampling.logprob_start_len if wants_prompt else -1,
    )


def _merge(usages: Sequence[EngineUsage]) -> Usage:
    """Add up runs of one prompt: what several of them computed of it counts as often."""
    prompt = usages[0].prompt
    computed = min(sum(usage.computed for usage in usages), prompt) if len(usages) > 1 else None
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=usages[0].cached if computed is None else prompt - computed,
        computed_tokens=usages[0].computed if computed is None else computed,
        evicted_tokens=sum(usage.evicted for usage in usages),
        completion_tokens=sum(usage.completion for usage in usages),
        forced_tokens=sum(usage.forced for usage in usages),
    )
