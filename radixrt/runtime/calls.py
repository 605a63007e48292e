"""Calls: what a client waits for. Each ends in exactly one message.

``GenerateCall`` turns the engine's tokens into text: detokenizing, stop strings, chunks, the final
outputs. ``SelectCall`` turns scores into a choice.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import regex
from numpy.typing import NDArray

from radixrt.errors import InvalidArgument
from radixrt.protocol import (
    Chosen,
    Chunk,
    Constraint,
    Explain,
    FieldScore,
    Finished,
    FinishReason,
    Flush,
    Generate,
    KeywordStatus,
    Output,
    Read,
    Restore,
    Sampling,
    Save,
    Select,
    Stats,
    TokenLogprob,
    Usage,
)
from radixrt.runtime.branches import Branch, Segment
from radixrt.runtime.choices import choose
from radixrt.runtime.constraints import grammar_spec, healing_spec, shown_names
from radixrt.runtime.outcome import field_scores, token_traces, tool_calls
from radixrt.runtime.sessions import Session
from radixrt.runtime.stops import StopMatch, StopMatcher, compile_patterns
from radixrt.runtime.tokenizer import BlockDetokenizer, Detokenizer, Tokenizer
from radixrt.runtime.wire import (
    Done,
    EngineUsage,
    GrammarReport,
    GrammarSpec,
    Run,
    Sampled,
    SampledLogprob,
    Score,
    Scored,
    TokenMark,
    TokenSampling,
    pack_ids,
)

TokenIds = NDArray[np.int32]

_CONTEXT_TOKENS = 6
"""Tokens before an output that decide how its first one is spelled."""

_BLOCK_TOKENS = 16
"""Tokens that become text at once where nothing waits for it."""


@dataclass(slots=True, eq=False)
class Call:
    """A call from its arrival to its one answer. ``deadline`` is monotonic seconds.

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


@dataclass(slots=True, eq=False)
class QuestionCall(Call):
    """What is answered by ``Reply``."""

    op: Read | Explain | Save | Restore | Flush | Stats = field(kw_only=True)


@dataclass(slots=True, eq=False)
class GenerateCall(Call):
    """A ``Generate``; ``start`` begins it, ``done`` notes the end of each of its runs.

    ``extra_uids`` name the leases of outputs beside the first, which end with the call.
    """

    op: Generate = field(kw_only=True)
    credit: int = 0
    extra_uids: list[int] = field(default_factory=list)
    outputs: list[OutputStream] = field(default_factory=list)
    usages: list[EngineUsage] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()

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
        )


class OutputStream:
    """One output as it grows: tokens in, text out.

    A stop string or pattern ends the text before the match, and the token ids with it: a token that
    the match cuts through is replaced by tokens of the part that stays. A stop token is no part of
    the output. Logprobs are those of all sampled tokens, the cut ones included. Where nothing needs
    the text before the end, it is made in blocks: token by token costs several times as much, and
    all at the end would keep the last answer waiting.
    """

    def __init__(
        self,
        index: int,
        op: Generate,
        tokenizer: Tokenizer,
        context: list[int],
        patterns: tuple[regex.Pattern[str], ...],
        end_ids: frozenset[int],
        num_healed: int = 0,
    ) -> None:
        """``num_healed``: characters at the beginning that the prompt has already."""
        self.index = index
        self._op = op
        self._context = context
        self._skip = num_healed
        self._marks: list[TokenMark] = []
        self._report = GrammarReport()
        self._is_held_back = False
        self.match: StopMatch | None = None
        self._min_tokens = op.sampling.min_tokens
        self._top_n = op.sampling.top_logprobs_num
        self._tokenizer = tokenizer
        self._shown = tokenizer.control_tokens(shown_names(op.constraint))
        self._detokenizer = Detokenizer(tokenizer, context, self._shown)
        self._matcher = StopMatcher(op.sampling.stop, patterns)
        self._has_stops = bool(op.sampling.stop or patterns)
        # Text that nobody needs before the end is made in blocks; a constraint may take some back.
        is_plain = op.constraint is None and not num_healed
        is_late = is_plain and not (op.stream or self._has_stops)
        self._blocks = BlockDetokenizer(tokenizer, context) if is_late else None
        self._num_spelled = 0
        self._end_ids = end_ids
        self._end_token: int | None = None
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._tops: list[tuple[TokenLogprob, ...]] = []
        self._search_from = num_healed
        self._reason: FinishReason | None = None
        self._text_sent = num_healed
        self._tokens_sent = 0
        self._logprobs_sent = 0

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self._reason is not None

    def take(self, sampled: Sampled) -> bool:
        """Add what the engine sent: take tokens back, then add tokens. As ``feed``."""
        self._is_held_back |= sampled.is_provisional
        if sampled.rewind:
            self._rewind(sampled.rewind)
        self._marks += sampled.marks
        return self.feed(sampled.token_ids, sampled.logprobs)

    def _rewind(self, num_tokens: int) -> None:
        """Take the last tokens back: a value was not valid and is generated again."""
        if self._end_token is not None:
            self._end_token = None
            num_tokens -= 1
        kept = self._token_ids[: len(self._token_ids) - num_tokens]
        if self._tokens_sent > len(kept):
            raise InvalidArgument(
                "stream", True, "text that was sent has turned out to be invalid; leave stream out"
            )
        num_all = len(kept)
        del self._marks[num_all:], self._logprobs[num_all:], self._tops[num_all:]
        self._detokenizer = Detokenizer(self._tokenizer, self._context, self._shown)
        self._token_ids = []
        for token_id in kept:
            self._push(token_id)

    def feed(self, token_ids: Sequence[int], logprobs: Sequence[SampledLogprob]) -> bool:
        """Add sampled tokens; True when a stop string or pattern has just matched.

        Raises ``InvalidArgument`` for a stop pattern that takes too long.
        """
        if self.match is not None:
            return False  # sampled before the engine saw the abort
        for position, token_id in enumerate(token_ids):
            if logprobs:
                self._note_logprob(token_id, logprobs[position])
            if self._end_token is not None:
                self._push(self._end_token)  # the engine went on: it was an ordinary token
                self._end_token = None
            if token_id in self._end_ids:
                self._end_token = token_id
            else:
                self._push(token_id)
            if self.match is not None:
                return True
        return False

    def finish(self, done: Done) -> None:
        """The run ended: settle text, tokens and reason."""
        self._report = done.grammar or self._report
        if self.match is None and self._end_token is not None and done.matched != self._end_token:
            self._push(self._end_token)
        self._end_token = None
        if self._blocks is not None:
            self._spell(self._blocks)
        if self.match is not None:
            kept = self._detokenizer.num_tokens_within(self.match.start)
            kept_len = self._detokenizer.ends[kept - 1] if kept else 0
            rest = self._detokenizer.text[kept_len : self.match.start]
            self._token_ids = self._token_ids[:kept]
            if rest:
                self._token_ids += self._tokenizer.encode(rest).tolist()
            self._reason = FinishReason("stop", self.match.matched)
        elif done.reason == "stop":
            self._reason = FinishReason("stop", done.matched)
        else:
            self._reason = FinishReason("length" if done.reason == "length" else "abort")

    def chunk(self, call: int) -> Chunk | None:
        """Return what was not sent yet and will not change; None when there is nothing."""
        if self.is_final:
            text_end, tokens_end = len(self._full), len(self._token_ids)
        elif self.match is not None or self._is_held_back:
            return None
        else:
            text_end = max(len(self._full), self._skip)
            if self._has_stops:
                text_end = self._matcher.safe_len(self._full, self._search_from)
            tokens_end = self._detokenizer.num_tokens_within(text_end)
        logprobs_end = min(len(self._logprobs), tokens_end)
        if self.is_final:
            logprobs_end = len(self._logprobs)
        elif text_end == self._text_sent:
            return None
        sent = self._text_sent, self._tokens_sent, self._logprobs_sent
        if sent == (text_end, tokens_end, logprobs_end):
            return None
        chunk = Chunk(
            call,
            self.index,
            self._full[self._text_sent : text_end],
            tuple(self._token_ids[self._tokens_sent : tokens_end]),
            tuple(self._logprobs[self._logprobs_sent : logprobs_end]),
        )
        self._text_sent, self._tokens_sent = text_end, tokens_end
        self._logprobs_sent = logprobs_end
        return chunk

    @property
    def text(self) -> str:
        """The text so far; cut before a match."""
        return self._full[self._skip :]

    @property
    def _full(self) -> str:
        """The text with what the prompt has of it already."""
        if self._blocks is not None:
            return self._blocks.text
        text = self._detokenizer.text
        return text if self.match is None else text[: self.match.start]

    @property
    def token_ids(self) -> TokenIds:
        """The tokens of the finished output, as the branch goes on with them."""
        return np.asarray(self._token_ids, dtype=np.int32)

    def result(self) -> Output:
        """The finished output."""
        assert self._reason is not None
        report, text = self._report, self.text
        num_tokens = len(self._token_ids)
        scores: tuple[FieldScore, ...] = ()
        constraint = self._op.constraint
        if self._marks and constraint is not None and constraint.kind == "json_schema":
            before, marker, _ = text.partition(constraint.after) if constraint.after else ("",) * 3
            begin = len(before) + len(marker) if marker else 0
            ends = [max(end - self._skip, 0) for end in self._detokenizer.ends]
            scores = field_scores(text, begin, ends, self._marks[:num_tokens])
        return Output(
            text,
            tuple(self._token_ids),
            self._reason,
            tuple(self._logprobs),
            tuple(self._tops) if self._top_n else (),
            tuple(KeywordStatus(*keyword) for keyword in report.enforcement),
            report.warnings,
            scores,
            token_traces(self._token_ids, self._marks, self._tokenizer) if self._op.trace else (),
            tool_calls(text, report.tool_format),
            report.tool_format,
            report.attempts,
        )

    def _push(self, token_id: int) -> None:
        if self._blocks is not None:
            self._token_ids.append(token_id)
            if len(self._token_ids) - self._num_spelled >= _BLOCK_TOKENS:
                self._spell(self._blocks)
            return
        seen = len(self._detokenizer.text)
        if len(self._token_ids) < self._min_tokens:
            self._search_from = seen  # a match cannot end the text before min_tokens
        self._token_ids.append(token_id)
        self._detokenizer.push(token_id)
        text = self._detokenizer.text
        is_due = self._has_stops and len(self._token_ids) >= self._min_tokens
        if is_due and len(text) > seen:
            self.match = self._matcher.search(text, seen, self._search_from)

    def _spell(self, blocks: BlockDetokenizer) -> None:
        blocks.extend(self._token_ids[self._num_spelled :])
        self._num_spelled = len(self._token_ids)

    def _note_logprob(self, token_id: int, entry: SampledLogprob) -> None:
        self._logprobs.append(
            TokenLogprob(entry.logprob, token_id, self._tokenizer.token_text(token_id))
        )
        if self._top_n:
            self._tops.append(
                tuple(
                    TokenLogprob(logprob, top_id, self._tokenizer.token_text(top_id))
                    for top_id, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True)
                )
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
