"""The calls of the frontend: messages become requests, ended requests become one message each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from radixrt.runtime.engine.pending import PendingCalls, report_of
from radixrt.runtime.engine.refusals import Capacity, RefusedError
from radixrt.runtime.grammar.service import GrammarService
from radixrt.runtime.scheduling.request import Reason, Request, Scoring, prompt_logprobs
from radixrt.runtime.scheduling.scheduler import Scheduler
from radixrt.runtime.scheduling.select import Selection
from radixrt.runtime.wire import (
    Done,
    EngineFailed,
    FromEngine,
    Run,
    Sampled,
    Score,
    Scored,
)


class OpenCalls:
    """Knows every call that has not been answered. Each is answered exactly once, by the message
    that ``submit`` or ``ended`` returns. ``namespace`` is what all of their namespaces begin with.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        capacity: Capacity,
        namespace: str = "",
        grammars: GrammarService | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._capacity = capacity
        self.namespace = namespace
        self._pending = (
            PendingCalls(
                grammars,
                run=scheduler.add,
                refuse=self._refuse,
                finish=self._finish,
                clock=clock,
            )
            if grammars is not None
            else None
        )
        self._answers: list[FromEngine] = []
        self._clock = clock
        self._calls: dict[int, Request | Selection] = {}
        self._by_branch: dict[int, set[int]] = {}
        self._families: dict[int, int] = {}
        self._num_seqs = 0
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._calls)

    def submit(self, call: Run | Score) -> FromEngine | None:
        """Take a call in; a message when it is refused."""
        try:
            if call.id in self._calls:
                raise RefusedError(
                    "bad_request", f"id={call.id} is an unfinished call: ids are unique"
                )
            if self.is_closed:
                raise RefusedError("overloaded", "the runtime is shutting down", retryable=True)
            self._capacity.check_queue(len(self._scheduler.queue))
            if isinstance(call, Run):
                self._submit_run(call)
            else:
                self._submit_score(call)
        except RefusedError as refused:
            return EngineFailed(call.id, refused.code, str(refused), refused.retryable)
        if call.id in self._calls:  # a constrained one may have ended already
            self._by_branch.setdefault(call.branch, set()).add(call.id)
            self._families[call.id] = call.family
            self._scheduler.kv.families.began(call.family)
        self._scheduler.metrics.calls += 1
        return None

    @property
    def is_waiting(self) -> bool:
        """Whether a thread works for a call: ``poll`` will have something to do."""
        return bool(self._answers) or (self._pending is not None and len(self._pending) > 0)

    def poll(self) -> list[FromEngine]:
        """Let the calls go on that waited for a thread; return the messages of those that end."""
        if self._pending is not None:
            self._pending.poll()
        answers, self._answers = self._answers, []
        return answers

    def take_sampled(self) -> list[Sampled]:
        """Return tokens that were appended outside of steps."""
        if self._pending is None:
            return []
        sampled, self._pending.sampled = self._pending.sampled, []
        return sampled

    def grammar_stats(self) -> dict[str, float]:
        """Return the counters of compiled constraints."""
        return {} if self._pending is None else self._pending.service.snapshot()

    def close(self) -> None:
        """End the threads and processes that work for calls."""
        if self._pending is not None:
            self._pending.service.close()

    def abort(self, call_id: int) -> None:
        """Mark a call to end; unknown ids are those that have ended."""
        for request in self._requests_of(call_id):
            self._end(request, "abort")

    def _end(
        self, request: Request, reason: Reason, failure: str = "", code: str = "engine_fault"
    ) -> None:
        if self._pending is not None and self._pending.holds(request):
            if request.reason is None or reason in ("abort", "failed"):
                request.reason = reason
                request.failure, request.failure_code = failure, code
            return
        self._scheduler.end(request, reason, failure, code)

    def _refuse(self, request: Request, code: str, message: str) -> None:
        """A request that owns nothing failed."""
        request.reason, request.failure, request.failure_code = "failed", message, code
        self._finish(request)

    def _finish(self, request: Request) -> None:
        """A request that owns nothing has ended."""
        self._forget(request.id, request.branch)
        self._scheduler.metrics.ended(request.reason or "failed", request.usage)
        self._answers.append(_run_message(request))

    def release(self, branch: int, *, ended: bool = True) -> None:
        """A branch is closed: what it parked, or will leave behind, goes first, if it ``ended``."""
        for call_id in self._by_branch.get(branch, ()) if ended else ():
            call = self._calls[call_id]
            call.is_branch_ended = True
            for request in self._requests_of(call_id):
                request.is_branch_ended = True
        self._scheduler.kv.release_branch(branch, ended=ended)

    def fail_all(self, code: str, message: str) -> None:
        """Mark every call to end as failed."""
        for call_id in list(self._calls):
            for request in self._requests_of(call_id):
                self._end(request, "failed", message, code)

    def ended(self, requests: Sequence[Request]) -> list[FromEngine]:
        """Return the messages of the calls that the ended requests complete."""
        messages: list[FromEngine] = []
        metrics = self._scheduler.metrics
        for request in requests:
            selection = request.selection
            if selection is None:
                if self._pending is not None and self._pending.check(request):
                    continue
                self._forget(request.id, request.branch)
                reason = request.reason or "failed"
                metrics.ended(reason, request.usage, request.explained, request.waited_s)
                messages.append(_run_message(request))
                continue
            for follower in selection.follow(request):
                self._scheduler.add(follower)
            if selection.failed is not None:
                for other in selection.live:
                    self._scheduler.end(other, "abort")
            if not selection.live:
                self._forget(request.id, request.branch)
                failed = selection.failed
                usage = msgspec.structs.replace(selection.usage, completion=0)  # none generated
                how = failed.reason or "failed" if failed else "scored"
                metrics.ended(how, usage, selection.explained, selection.waited_s)
                messages.append(_score_message(selection))
        return messages

    def _requests_of(self, call_id: int) -> list[Request]:
        call = self._calls.get(call_id)
        if call is None:
            return []
        return sorted(call.live, key=_seq) if isinstance(call, Selection) else [call]

    def _forget(self, call_id: int, branch: int) -> None:
        del self._calls[call_id]
        self._scheduler.kv.families.ended(self._families.pop(call_id, 0))
        of_branch = self._by_branch[branch]
        of_branch.discard(call_id)
        if not of_branch:
            del self._by_branch[branch]

    def _next_seq(self) -> int:
        self._num_seqs += 1
        return self._num_seqs

    def _submit_run(self, call: Run) -> None:
        sampling = call.sampling
        token_ids = self._capacity.check_run(call)
        n, first = len(token_ids), sampling.prompt_logprobs_from
        scoring, logits_from = None, n - 1
        if 0 <= first < n:
            logits_from = max(first - 1, 0)
            targets: list[tuple[int, ...]] = [(i,) for i in token_ids[logits_from + 1 :].tolist()]
            scoring = Scoring(logits_from, targets, sampling.top_logprobs_num)
        request = Request(
            id=call.id,
            branch=call.branch,
            namespace=self.namespace + call.namespace,
            token_ids=token_ids,
            prompt_len=n,
            sampling=sampling,
            seq=self._next_seq(),
            logits_from=logits_from,
            scoring=scoring,
            deadline=self._deadline(call.deadline_s),
            salt=call.namespace,
            is_cached=call.is_cached,
            pause_s=call.pause_s,
            family=call.family,
        )
        if call.grammar is None:
            self._calls[call.id] = request
            self._scheduler.add(request)
            return
        if self._pending is None:
            raise RefusedError(
                "unsupported", "constraints need the model's tokenizer.json; it has none"
            )
        self._calls[call.id] = request
        self._by_branch.setdefault(call.branch, set()).add(call.id)
        self._pending.add(request, call.grammar)

    def _submit_score(self, call: Score) -> None:
        selection = Selection(
            call,
            self._capacity.check_score(call),
            namespace=self.namespace + call.namespace,
            deadline=self._deadline(call.deadline_s),
            next_seq=self._next_seq,
        )
        self._calls[call.id] = selection
        for request in selection.start():
            self._scheduler.add(request)

    def _deadline(self, deadline_s: float | None) -> float | None:
        return None if deadline_s is None else self._clock() + deadline_s


def _seq(request: Request) -> int:
    return request.seq


def _run_message(request: Request) -> FromEngine:
    if request.reason == "failed" or request.reason is None:
        return EngineFailed(request.id, request.failure_code, request.failure, retryable=False)
    return Done(
        request.id,
        request.reason,
        request.usage,
        request.matched,
        prompt_logprobs(request),
        request.explained,
        report_of(request),
    )


def _score_message(selection: Selection) -> FromEngine:
    call_id, failed = selection.call.id, selection.failed
    if failed is None:
        return Scored(
            call_id,
            selection.logprobs(),
            selection.usage,
            selection.unconditional(),
            selection.explained,
        )
    if failed.reason == "deadline":
        return EngineFailed(call_id, "deadline", "the options were not scored in time")
    if failed.reason == "abort":
        return EngineFailed(call_id, "cancelled", "the selection was aborted")
    return EngineFailed(call_id, failed.failure_code, failed.failure)
