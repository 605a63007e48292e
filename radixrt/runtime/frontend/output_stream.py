"""One output of a generation: the engine's tokens become text, chunks and the final result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import regex
from numpy.typing import NDArray

from radixrt.errors import InvalidArgument
from radixrt.protocol import (
    Chunk,
    FieldScore,
    FinishReason,
    Generate,
    KeywordStatus,
    Output,
    TokenLogprob,
)
from radixrt.runtime.frontend.constraints import shown_names
from radixrt.runtime.frontend.outcome import field_scores, token_traces, tool_calls
from radixrt.runtime.frontend.stops import StopMatch, StopMatcher
from radixrt.runtime.tokenizer import BlockDetokenizer, Detokenizer, Tokenizer
from radixrt.runtime.wire import Done, GrammarReport, Sampled, SampledLogprob, TokenMark

TokenIds = NDArray[np.int32]

_BLOCK_TOKENS = 16
"""Tokens that become text at once where nothing waits for it."""


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
        is_plain = op.constraint is None and not num_healed and not self._shown
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
            tuple(self._tops[self._logprobs_sent : logprobs_end]),
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
            self._tops.append(top_entries(entry, self._tokenizer))


def top_entries(entry: SampledLogprob, tokenizer: Tokenizer) -> tuple[TokenLogprob, ...]:
    """Return the likeliest tokens at one position."""
    return tuple(
        TokenLogprob(logprob, top_id, tokenizer.token_text(top_id))
        for top_id, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True)
    )
