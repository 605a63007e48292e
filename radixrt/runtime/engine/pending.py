"""Calls that wait for a thread: to compile their constraint, or to check their finished text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from radixrt.errors import ValueRefused
from radixrt.runtime.grammar.base import GrammarError, GrammarTimeout
from radixrt.runtime.grammar.budget import Budget
from radixrt.runtime.grammar.exclusion import Exclusion
from radixrt.runtime.grammar.service import GrammarService, Ticket
from radixrt.runtime.grammar.session import Session
from radixrt.runtime.grammar.validate import Failure
from radixrt.runtime.grammar.workers import Job
from radixrt.runtime.scheduling.constrained import end_request, sampled_message
from radixrt.runtime.scheduling.request import Request
from radixrt.runtime.wire import GrammarReport, GrammarSpec, Sampled

PROMPT_TAIL = 256
"""Tokens at the end of a prompt that are looked at for an open reasoning section."""

_SEED_STEP = 0x5851F42D4C957F2D
"""Added to a seed for another attempt: with the same random numbers it would end the same way."""


@dataclass(slots=True)
class _Compiling:
    request: Request
    spec: GrammarSpec
    ticket: Ticket


@dataclass(slots=True)
class _Checking:
    """``failure`` is what the check found; ``job`` then takes the text back before it."""

    request: Request
    job: Job
    failure: Failure | None = None


class PendingCalls:
    """Holds requests back while a thread works for them. They own no slot and no page.

    ``run(request)`` schedules one; ``refuse(request, code, message)`` and ``finish(request)``
    answer its call.
    """

    def __init__(
        self,
        service: GrammarService,
        *,
        run: Callable[[Request], None],
        refuse: Callable[[Request, str, str], None],
        finish: Callable[[Request], None],
        clock: Callable[[], float],
    ) -> None:
        self.service = service
        self._run = run
        self._refuse = refuse
        self._finish = finish
        self._clock = clock
        self._compiling: list[_Compiling] = []
        self._checking: list[_Checking] = []
        self._resuming: list[Request] = []
        self.sampled: list[Sampled] = []

    def __len__(self) -> int:
        return len(self._compiling) + len(self._checking) + len(self._resuming)

    def holds(self, request: Request) -> bool:
        """Whether a request waits here."""
        held = [entry.request for entry in self._compiling]
        held += [entry.request for entry in self._checking]
        held += self._resuming
        return any(other is request for other in held)

    # ------------------------------------------------------------ compiling

    def add(self, request: Request, spec: GrammarSpec) -> None:
        """Let a request wait for its constraint; it goes on at once when that is known."""
        try:
            ticket = self.service.request(spec)
        except GrammarTimeout as error:
            self._refuse(request, "overloaded", str(error))
            return
        waiting = _Compiling(request, spec, ticket)
        if not self._go_on(waiting):
            self._compiling.append(waiting)

    def poll(self) -> None:
        """Let those go on whose thread is done. Called once before every step."""
        if not len(self):
            return
        resuming, self._resuming = self._resuming, []
        for request in resuming:
            if request.reason in ("stop", "length"):  # else it was ended meanwhile
                request.reason = None
            if self._has_ended(request):
                self._finish(request)
            else:
                self._run(request)
        self._compiling = [entry for entry in self._compiling if not self._go_on(entry)]
        self._checking = [entry for entry in self._checking if not self._conclude(entry)]
        self.service.collect()

    def _go_on(self, entry: _Compiling) -> bool:
        request = entry.request
        if self._has_ended(request):
            self._finish(request)
            return True
        try:
            if not self.service.is_ready(entry.ticket):
                return False
            self._begin(request, entry)
        except GrammarTimeout as error:
            self._refuse(request, "constraint", str(error))
        except GrammarError as error:
            self._refuse(request, "bad_request", str(error))
        return True

    def _has_ended(self, request: Request) -> bool:
        deadline = request.deadline
        if request.reason is None and deadline is not None and self._clock() >= deadline:
            request.reason = "deadline"
        return request.reason is not None

    def _begin(self, request: Request, entry: _Compiling) -> None:
        session = self._session(request, entry.spec, entry.ticket)
        for text in entry.spec.exclude:
            if not session.exclusion.add((entry.spec.heal + text).encode(), session.matcher):
                raise GrammarError(f"exclude={text[:80]!r}: the constraint has no other value")
        request.session = session
        request.has_extras = True
        accepted = session.start()
        if accepted.token_ids:
            self._extend(request, accepted.token_ids)
            self.sampled.append(sampled_message(request, accepted.token_ids))
        if accepted.is_over:
            end_request(request, accepted, _mark)
            self._finish(request)
        else:
            self._run(request)

    def _session(self, request: Request, spec: GrammarSpec, ticket: Ticket) -> Session:
        entry = ticket.entry
        assert entry is not None
        vocabulary = self.service.engine.vocabulary
        tail = request.token_ids[-PROMPT_TAIL:].tolist() if spec.after else []
        return Session(
            spec,
            entry.compiled,
            vocabulary,
            Budget(request.sampling.max_tokens, request.sampling.min_tokens),
            request.stops,
            entry.fork(),
            Exclusion(vocabulary),
            prompt_tail=b"".join(map(vocabulary.spell, tail)),
        )

    def _extend(self, request: Request, token_ids: list[int]) -> None:
        before = len(request.token_ids)
        request.token_ids = np.concatenate([request.token_ids, np.array(token_ids, np.int32)])
        if request.logits_from == before - 1 and request.scoring is None:
            request.logits_from = len(request.token_ids) - 1
        session = request.session
        request.completion = len(session.written.token_ids) if session is not None else 0

    # ------------------------------------------------------------ checking

    def check(self, request: Request) -> bool:
        """Have the text of a request that has ended checked; False when there is nothing to check
        and its call can be answered."""
        session = request.session
        if session is None or request.reason not in ("stop", "length") or not session.is_checked:
            return False
        validator = session.compiled.validator
        assert validator is not None
        try:
            job = self.service.check(validator, session.written.bound_text)
            self._checking.append(_Checking(request, job))
        except GrammarTimeout as error:
            self._refuse(request, "overloaded", str(error))
        return True

    def _conclude(self, entry: _Checking) -> bool:
        request, job = entry.request, entry.job
        session = request.session
        assert session is not None
        if not job.is_done:
            if not self.service.is_late(job):
                return False
            self._refuse(request, "constraint", "the final validation of the text takes too long")
            return True
        try:
            if entry.failure is not None:
                self._resume(request, session, job.value())
                return True
            failure: Failure | None = job.value()
            if failure is None:
                self._finish(request)
            elif session.attempts > session.spec.retries:
                self._refuse(
                    request,
                    ValueRefused.code,
                    f"no valid text in {session.attempts} attempts: {failure.message}; allow more "
                    "retries or change the schema",
                )
            else:
                found = failure
                entry.failure = failure
                entry.job = self.service.submit(
                    lambda: session.rewind(session.matcher.restarted(), found)
                )
                return self._conclude(entry)
        except GrammarTimeout as error:
            self._refuse(request, "overloaded", str(error))
        except GrammarError as error:
            self._refuse(request, "constraint", str(error))
        return True

    def _resume(self, request: Request, session: Session, num_kept: int) -> None:
        """Go on from the tokens that are left of a text that was taken back."""
        num_taken_back = request.completion - num_kept
        kept = np.array(session.written.token_ids, np.int32)
        request.token_ids = np.concatenate([request.token_ids[: request.prompt_len], kept])
        request.logits_from = len(request.token_ids) - 1
        request.completion = num_kept
        request.matched = None
        request.num_retractions += 1  # it goes on before new ones
        seed = (request.sampling.seed + session.attempts * _SEED_STEP) % 2**63
        request.sampling = msgspec.structs.replace(request.sampling, seed=seed)
        self.sampled.append(Sampled(request.id, (), rewind=num_taken_back))
        # Not at once: a step in flight may hold a row of the text that was taken back. Until then
        # the request counts as ended.
        self._resuming.append(request)


def report_of(request: Request) -> GrammarReport | None:
    """Return what the constraint of a request came to."""
    session = request.session
    if session is None:
        return None
    compiled = session.compiled
    return GrammarReport(
        tuple((k.pointer, k.keyword, k.status) for k in compiled.keywords),
        compiled.warnings,
        compiled.tools.style.name if compiled.tools is not None else "",
        session.attempts,
    )


def _mark(request: Request, reason: str) -> None:
    request.reason = reason  # type: ignore[assignment]
