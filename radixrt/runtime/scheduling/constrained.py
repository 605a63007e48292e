"""Sampled tokens of constrained requests on their way into the slot table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.session import GOES_ON, Accepted, Session
from radixrt.runtime.scheduling.plan import StepResult
from radixrt.runtime.scheduling.request import Request
from radixrt.runtime.scheduling.slots import PLACEHOLDER, SlotTable
from radixrt.runtime.wire import Sampled, SampledLogprob

End = Callable[..., None]


class ConstrainedRow(NamedTuple):
    """The sample ``sample`` of a step, for ``position`` of a constrained request."""

    request: Request
    position: int
    sample: int


class ConstrainedRows:
    """Appends what becomes of a sampled token: it, tokens that are forced after it, or others in
    its place.

    While a step is in flight that was launched with the sampled token as its input::

        position      p          p + 1
        tokens        sampled    placeholder of the step in flight
        forced after  sampled    forced …      the sample of the step in flight is dropped
        replaced      (kept)     (kept)        ``correction`` waits until that step is read back
    """

    def __init__(self, slots: SlotTable, end: End) -> None:
        """``end(request, reason, message, code)`` marks a request to end."""
        self._slots = slots
        self._end = end

    def take(self, rows: Sequence[ConstrainedRow], result: StepResult) -> list[Sampled]:
        """Take the samples of a step; returns what was appended. Those that were superseded
        meanwhile are dropped."""
        tokens, sampled = self._slots.tokens, []
        slots = np.array([row.request.slot for row in rows], np.int32)
        positions = np.array([row.position for row in rows], np.int32)
        is_open = tokens[slots, positions] == PLACEHOLDER
        plain_rows: list[int] = []
        plain_ids: list[int] = []
        for at, (row, is_wanted) in enumerate(zip(rows, is_open.tolist(), strict=True)):
            request, token_id = row.request, result.token_ids[row.sample]
            session = request.session
            assert session is not None
            if request.correction is not None:
                self._correct(request)
                continue
            if not is_wanted:
                continue
            try:
                accepted = session.accept_plain(token_id)
            except GrammarError as error:
                self._end(request, "failed", str(error), "constraint")
                continue
            if accepted is GOES_ON:
                # The token takes the place that was kept for it.
                plain_rows.append(at)
                plain_ids.append(token_id)
                request.completion += 1
                logprob = result.logprobs.get(row.sample) if request.sampling.logprobs else None
                sampled.append(
                    Sampled(
                        request.id,
                        (token_id,),
                        (logprob,) if logprob else (),
                        is_provisional=session.is_provisional,
                    )
                )
                continue
            taken = self._take_one(row, result, accepted)
            if taken is not None:
                sampled.append(taken)
        tokens[slots[plain_rows], positions[plain_rows]] = plain_ids
        return sampled

    def _take_one(
        self, row: ConstrainedRow, result: StepResult, accepted: Accepted | None
    ) -> Sampled | None:
        """Take a sample with consequences; ``accepted`` is what they are, if the session has taken
        it already."""
        request, position, index = row
        session = request.session
        assert session is not None
        try:
            if accepted is None:
                accepted = session.accept(
                    result.token_ids[index], *result.marks.get(index, (0.0, 0.0))
                )
        except GrammarError as error:
            self._end(request, "failed", str(error), "constraint")
            return None
        request.completion = len(session.written.token_ids)
        self._write(request, position, accepted)
        self._slots.note_session(request)
        if accepted.is_over:
            end_request(request, accepted, self._end)
        logprob = None if accepted.replaced else result.logprobs.get(index)
        return sampled_message(request, accepted.token_ids, logprob)

    def _write(self, request: Request, position: int, accepted: Accepted) -> None:
        slots, slot, tokens = self._slots, request.slot, accepted.token_ids
        is_ahead = int(slots.num_tokens[slot]) > position + 1
        if accepted.replaced and is_ahead and not accepted.is_over:
            request.correction = position, tokens
            slots.runnable[slot] = False
            return
        end = position + len(tokens)
        slots.tokens[slot, position:end] = tokens
        if len(tokens) > 1 or not is_ahead:
            slots.num_tokens[slot] = max(end, 1)
        # Of tokens that were forced only the last one's logits are wanted.
        slots.logits_from[slot] = max(int(slots.logits_from[slot]), end - 1)

    def _correct(self, request: Request) -> None:
        """No step is in flight any more: put the tokens in their place."""
        slots, slot = self._slots, request.slot
        assert request.correction is not None
        position, tokens = request.correction
        request.correction = None
        end = position + len(tokens)
        slots.tokens[slot, position:end] = tokens
        slots.num_tokens[slot] = end
        slots.num_computed[slot] = slots.num_committed[slot] = position
        slots.logits_from[slot] = end - 1
        slots.runnable[slot] = True


def end_request(request: Request, accepted: Accepted, end: End) -> None:
    """Mark a request whose text is over: by an end token, because nothing can follow, or because
    its tokens are used up."""
    session = request.session
    assert session is not None
    last = accepted.token_ids[-1] if accepted.token_ids else -1
    if last in request.stops and not accepted.replaced:
        request.matched = last
        end(request, "stop")
    elif session.is_complete or accepted.replaced:
        end(request, "stop")
    else:
        end(request, "length")


def sampled_message(
    request: Request, token_ids: list[int], logprob: SampledLogprob | None = None
) -> Sampled:
    """Return the message about new tokens, of which the first may have a logprob."""
    session: Session | None = request.session
    assert session is not None
    logprobs: tuple[SampledLogprob, ...] = ()
    if request.sampling.logprobs and token_ids:
        first = logprob or SampledLogprob(None)
        logprobs = (first, *(SampledLogprob(None) for _ in token_ids[1:]))
    all_marks = session.written.marks
    marks = tuple(all_marks[len(all_marks) - len(token_ids) :]) if token_ids else ()
    return Sampled(
        request.id, tuple(token_ids), logprobs, marks=marks, is_provisional=session.is_provisional
    )
