"""The calls of the frontend: messages become requests, ended requests become one message each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.grammar.base import GrammarCompiler, GrammarError, Matcher
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
    TokenSampling,
    unpack_ids,
)

Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one call can have: tokens of the model's context and of the KV pool, ids below
    ``vocab_size``; and how many calls may wait."""

    max_context: int
    kv_tokens: int
    vocab_size: int
    max_queue: int


class Refused(Exception):
    """A call that is answered at once with ``EngineFailed``."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        self.code = code
        self.retryable = retryable
        super().__init__(message)


class OpenCalls:
    """Knows every call that has not been answered. Each is answered exactly once, by the message
    that ``submit`` or ``ended`` returns."""

    def __init__(
        self,
        scheduler: Scheduler,
        capacity: Capacity,
        namespace: str = "",
        grammars: GrammarCompiler | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._capacity = capacity
        self._namespace = namespace
        self._grammars = grammars
        self._clock = clock
        self._calls: dict[int, Request | Selection] = {}
        self._by_branch: dict[int, set[int]] = {}
        self._num_seqs = 0
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._calls)

    def submit(self, call: Run | Score) -> FromEngine | None:
        """Take a call in; a message when it is refused."""
        try:
            if call.id in self._calls:
                raise Refused("bad_request", f"id={call.id} is an unfinished call: ids are unique")
            self._check_admission()
            if isinstance(call, Run):
                self._submit_run(call)
            else:
                self._submit_score(call)
        except Refused as refused:
            return EngineFailed(call.id, refused.code, str(refused), refused.retryable)
        self._by_branch.setdefault(call.branch, set()).add(call.id)
        return None

    def abort(self, call_id: int) -> None:
        """Mark a call to end; unknown ids are those that have ended."""
        for request in self._requests_of(call_id):
            self._scheduler.end(request, "abort")

    def release(self, branch: int) -> None:
        """A branch is closed: what it parked, or will leave behind, goes first."""
        for call_id in self._by_branch.get(branch, ()):
            call = self._calls[call_id]
            call.is_branch_ended = True
            for request in self._requests_of(call_id):
                request.is_branch_ended = True
        self._scheduler.kv.release_branch(branch, ended=True)

    def fail_all(self, code: str, message: str) -> None:
        """Mark every call to end as failed."""
        for call_id in list(self._calls):
            for request in self._requests_of(call_id):
                self._scheduler.end(request, "failed", message, code)

    def ended(self, requests: Sequence[Request]) -> list[FromEngine]:
        """Return the messages of the calls that the ended requests complete."""
        messages: list[FromEngine] = []
        for request in requests:
            selection = request.selection
            if selection is None:
                self._forget(request.id, request.branch)
                messages.append(_run_message(request))
                continue
            for follower in selection.follow(request):
                self._scheduler.add(follower)
            if selection.failed is not None:
                for other in selection.live:
                    self._scheduler.end(other, "abort")
            if not selection.live:
                self._forget(request.id, request.branch)
                messages.append(_score_message(selection))
        return messages

    def _requests_of(self, call_id: int) -> list[Request]:
        call = self._calls.get(call_id)
        if call is None:
            return []
        return sorted(call.live, key=_seq) if isinstance(call, Selection) else [call]

    def _forget(self, call_id: int, branch: int) -> None:
        del self._calls[call_id]
        of_branch = self._by_branch[branch]
        of_branch.discard(call_id)
        if not of_branch:
            del self._by_branch[branch]

    def _next_seq(self) -> int:
        self._num_seqs += 1
        return self._num_seqs

    def _check_admission(self) -> None:
        if self.is_closed:
            raise Refused("overloaded", "the runtime is shutting down", retryable=True)
        waiting = len(self._scheduler.queue)
        if waiting >= self._capacity.max_queue:
            raise Refused(
                "overloaded",
                f"{waiting} calls are waiting, max_queue={self._capacity.max_queue}: try again later",
                retryable=True,
            )

    def _submit_run(self, call: Run) -> None:
        sampling = call.sampling
        token_ids = self._ids("token_ids", unpack_ids(call.token_ids))
        n = len(token_ids)
        if n == 0:
            raise Refused("bad_request", "token_ids is empty: a prompt has at least one token")
        self._check_sampling(sampling)
        self._check_length(n, sampling.max_tokens)
        scoring = None
        logits_from = n - 1
        first = sampling.prompt_logprobs_from
        if 0 <= first < n:
            logits_from = max(first - 1, 0)
            targets = [(token,) for token in token_ids[logits_from + 1 :].tolist()]
            scoring = Scoring(logits_from, targets, sampling.top_logprobs_num)
            logits_from = min(logits_from, n - 1)
        request = Request(
            id=call.id,
            branch=call.branch,
            namespace=self._namespace + call.namespace,
            token_ids=token_ids,
            prompt_len=n,
            sampling=sampling,
            seq=self._next_seq(),
            logits_from=logits_from,
            matcher=self._matcher(call),
            scoring=scoring,
            deadline=self._deadline(call.deadline_s),
        )
        self._calls[call.id] = request
        self._scheduler.metrics.calls += 1
        self._scheduler.add(request)

    def _submit_score(self, call: Score) -> None:
        prompt = self._ids("token_ids", unpack_ids(call.token_ids))
        plain = self._ids("unconditional_prefix", np.array(call.unconditional_prefix, np.int32))
        if len(prompt) == 0 or (call.unconditional and len(plain) == 0):
            raise Refused("bad_request", "options can only be scored after at least one token")
        if not call.options or not all(call.options):
            raise Refused("bad_request", "options: give at least one, each with at least one token")
        for option in call.options:
            self._ids("options", np.array(option, np.int64))
        longest = max(len(option) for option in call.options)
        self._check_length(max(len(prompt), len(plain)), longest)
        selection = Selection(
            call,
            prompt,
            namespace=self._namespace + call.namespace,
            deadline=self._deadline(call.deadline_s),
            next_seq=self._next_seq,
        )
        self._calls[call.id] = selection
        self._scheduler.metrics.calls += 1
        for request in selection.start():
            self._scheduler.add(request)

    def _ids(self, name: str, ids: NDArray[np.int32] | NDArray[np.int64]) -> Int32:
        if len(ids) and not (0 <= int(ids.min()) and int(ids.max()) < self._capacity.vocab_size):
            wrong = ids[(ids < 0) | (ids >= self._capacity.vocab_size)][0]
            raise Refused(
                "bad_request",
                f"{name} contains {wrong}: ids are 0 … {self._capacity.vocab_size - 1}",
            )
        return ids.astype(np.int32, copy=False)

    def _check_sampling(self, sampling: TokenSampling) -> None:
        vocab_size = self._capacity.vocab_size
        self._ids("logit_bias", np.array([token for token, _ in sampling.logit_bias], np.int64))
        self._ids("stop_token_ids", np.array(sampling.stop_token_ids, np.int64))
        if not 0 <= sampling.top_logprobs_num <= vocab_size:
            raise Refused(
                "bad_request",
                f"top_logprobs_num={sampling.top_logprobs_num}: use 0 … {vocab_size}",
            )
        for name, is_right, way_out in (
            ("max_tokens", sampling.max_tokens >= 0, "use 0 or more"),
            ("temperature", 0 <= sampling.temperature < np.inf, "use a number of at least 0"),
            ("top_p", 0 < sampling.top_p <= 1, "use a number in (0, 1]"),
            ("top_k", 0 <= sampling.top_k < 2**31, "use 0 (all tokens) or more"),
            ("min_p", 0 <= sampling.min_p <= 1, "use a number in [0, 1]"),
            (
                "repetition_penalty",
                0 < sampling.repetition_penalty < np.inf,
                "use a number above 0",
            ),
            ("frequency_penalty", bool(np.isfinite(sampling.frequency_penalty)), "use a number"),
            ("presence_penalty", bool(np.isfinite(sampling.presence_penalty)), "use a number"),
        ):
            if not is_right:
                raise Refused("bad_request", f"{name}={getattr(sampling, name)}: {way_out}")

    def _check_length(self, prompt_len: int, max_tokens: int) -> None:
        total, capacity = prompt_len + max_tokens, self._capacity
        if total > capacity.max_context:
            raise Refused(
                "too_long",
                f"a prompt of {prompt_len} tokens and max_tokens={max_tokens} make {total}; the context "
                f"holds {capacity.max_context}: shorten the prompt or lower max_tokens",
            )
        if total > capacity.kv_tokens:
            raise Refused(
                "too_long",
                f"a prompt of {prompt_len} tokens and max_tokens={max_tokens} make {total}; the KV "
                f"memory holds {capacity.kv_tokens}: shorten the prompt, lower max_tokens or start the "
                "runtime with more --memory",
            )

    def _matcher(self, call: Run) -> Matcher | None:
        if call.grammar is None:
            return None
        if self._grammars is None:
            raise Refused("unsupported", "constraints need the model's tokenizer.json; it has none")
        try:
            return self._grammars.compile(call.grammar)
        except GrammarError as error:
            raise Refused("bad_request", str(error)) from None

    def _deadline(self, deadline_s: float | None) -> float | None:
        return None if deadline_s is None else self._clock() + deadline_s


def _seq(request: Request) -> int:
    return request.seq


def _run_message(request: Request) -> FromEngine:
    if request.reason == "failed" or request.reason is None:
        return EngineFailed(request.id, request.failure_code, request.failure, retryable=False)
    return Done(
        request.id, request.reason, request.usage, request.matched, prompt_logprobs(request)
    )


def _score_message(selection: Selection) -> FromEngine:
    call_id, failed = selection.call.id, selection.failed
    if failed is None:
        return Scored(call_id, selection.logprobs(), selection.usage, selection.unconditional())
    if failed.reason == "deadline":
        return EngineFailed(call_id, "deadline", "the options were not scored in time")
    if failed.reason == "abort":
        return EngineFailed(call_id, "cancelled", "the selection was aborted")
    return EngineFailed(call_id, failed.failure_code, failed.failure)
