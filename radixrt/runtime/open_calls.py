"""The calls of the frontend: messages become requests, ended requests become one message each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from radixrt.runtime.grammar.base import GrammarError, Matcher
from radixrt.runtime.grammar.cache import CachedCompiler
from radixrt.runtime.refusals import Capacity, RefusedError
from radixrt.runtime.request import Request, Scoring, prompt_logprobs
from radixrt.runtime.scheduler import Scheduler
from radixrt.runtime.select import Selection
from radixrt.runtime.wire import (
    Done,
    EngineFailed,
    FromEngine,
    Run,
    Score,
    Scored,
)


class OpenCalls:
    """Knows every call that has not been answered. Each is answered exactly once, by the message
    that ``submit`` or ``ended`` returns."""

    def __init__(
        self,
        scheduler: Scheduler,
        capacity: Capacity,
        namespace: str = "",
        grammars: CachedCompiler | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._capacity = capacity
        self._namespace = namespace
        self._grammars = grammars
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
        self._by_branch.setdefault(call.branch, set()).add(call.id)
        self._families[call.id] = call.family
        self._scheduler.kv.families.began(call.family)
        self._scheduler.metrics.calls += 1
        return None

    def abort(self, call_id: int) -> None:
        """Mark a call to end; unknown ids are those that have ended."""
        for request in self._requests_of(call_id):
            self._scheduler.end(request, "abort")

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
                self._scheduler.end(request, "failed", message, code)

    def ended(self, requests: Sequence[Request]) -> list[FromEngine]:
        """Return the messages of the calls that the ended requests complete."""
        messages: list[FromEngine] = []
        metrics = self._scheduler.metrics
        for request in requests:
            selection = request.selection
            if selection is None:
                self._forget(request.id, request.branch)
                if request.reason == "failed" and request.grammar and self._grammars:
                    self._grammars.forget(request.grammar)
                metrics.ended(request.reason or "failed", request.usage)
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
                metrics.ended(failed.reason or "failed" if failed else "scored", selection.usage)
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
            namespace=self._namespace + call.namespace,
            token_ids=token_ids,
            prompt_len=n,
            sampling=sampling,
            seq=self._next_seq(),
            logits_from=logits_from,
            grammar=call.grammar,
            matcher=self._matcher(call),
            scoring=scoring,
            deadline=self._deadline(call.deadline_s),
            salt=call.namespace,
            is_cached=call.is_cached,
            pause_s=call.pause_s,
            family=call.family,
        )
        self._calls[call.id] = request
        self._scheduler.add(request)

    def _submit_score(self, call: Score) -> None:
        selection = Selection(
            call,
            self._capacity.check_score(call),
            namespace=self._namespace + call.namespace,
            deadline=self._deadline(call.deadline_s),
            next_seq=self._next_seq,
        )
        self._calls[call.id] = selection
        for request in selection.start():
            self._scheduler.add(request)

    def _matcher(self, call: Run) -> Matcher | None:
        if call.grammar is None:
            return None
        if self._grammars is None:
            raise RefusedError(
                "unsupported", "constraints need the model's tokenizer.json; it has none"
            )
        try:
            return self._grammars.compile(call.grammar)
        except GrammarError as error:
            raise RefusedError("bad_request", str(error)) from None

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
