"""The unanswered calls, and the engine's calls that work for them."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from radixrt.errors import CallFailed, InvalidArgument
from radixrt.protocol import Failed, Reply, ToClient
from radixrt.runtime.frontend.accounts import Accounts
from radixrt.runtime.frontend.branches import Branch
from radixrt.runtime.frontend.call_metrics import CallMetrics
from radixrt.runtime.frontend.calls import Call, GenerateCall, QuestionCall, SelectCall
from radixrt.runtime.frontend.engine_link import EngineLink
from radixrt.runtime.frontend.outbox import Outbox
from radixrt.runtime.frontend.watched import Watched
from radixrt.runtime.tokenizer import Tokenizer
from radixrt.runtime.wire import (
    Abort,
    Done,
    EngineFailed,
    EngineReply,
    Question,
    Run,
    Score,
    Scored,
    Step,
)

EngineCall = Run | Score | Question

_SPARE_DEADLINES = 1024
"""Deadlines of answered calls that are kept before they are swept out."""


class CallTable:
    """Answers every registered call with exactly one message.

    What the engine sends for a call that was answered already is ignored. A branch whose call has
    ended goes to ``runnable``.
    """

    def __init__(
        self,
        engine: EngineLink,
        tokenizer: Tokenizer,
        outbox: Outbox,
        runnable: deque[Branch],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._outbox = outbox
        self._runnable = runnable
        self._runs: dict[int, tuple[Call, int]] = {}
        self._deadlines: list[tuple[float, int, Call]] = []
        self._streaming: dict[int, GenerateCall] = {}
        self._score: Callable[[Branch, SelectCall], None] = _no_score
        self._clock = clock
        self._order = itertools.count()
        self.metrics = CallMetrics()
        self.accounts = Accounts(tokenizer)
        self.watched = Watched(tokenizer)
        self.num_calls = 0

    def on_options(self, score: Callable[[Branch, SelectCall], None]) -> None:
        """Say who scores a selection once the texts of all of its options are known."""
        self._score = score

    # ------------------------------------------------------------ from arrival to end

    def register(self, call: Call) -> None:
        """A call has arrived; from now on it is unanswered."""
        call.arrived = self._clock()
        call.session.calls[call.id] = call
        self.num_calls += 1
        if len(self._deadlines) > 2 * self.num_calls + _SPARE_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if not entry[2].is_over]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (call.deadline, next(self._order), call))

    def dispatch(self, call: Call, engine_calls: list[EngineCall]) -> None:
        """Send the engine's calls that work for ``call``; the n-th is its n-th output."""
        call.run_ids = [engine_call.id for engine_call in engine_calls]
        for index, engine_call in enumerate(engine_calls):
            self._runs[engine_call.id] = (call, index)
            if isinstance(engine_call, Run | Score):
                self.accounts.began(engine_call.id, call)
            self._engine.post(engine_call)

    def answer(self, call: Call, message: ToClient) -> None:
        """Send the one answer of a call and let its branch go on; nothing if it has one."""
        if not call.is_over:
            self.end(call, message)
            self._outbox.put(call.session.client_id, message)

    def fail(self, call: Call, code: str, text: str, *, retryable: bool = False) -> None:
        """Answer a call with ``Failed``; what follows it in its branch fails too."""
        if call.is_over:
            return
        call.failure = text
        branch = call.branch
        # A call that waits fails its branch in its turn, so that what came before is not harmed.
        if branch is not None and call not in branch.ops:
            self.poison(branch, call)
        self.answer(call, Failed(call.id, code, text, retryable=retryable))

    def poison(self, branch: Branch, call: Call) -> None:
        """Let everything fail that follows a failed call in its branch."""
        if not isinstance(call, QuestionCall):  # reading changes nothing
            branch.failure = branch.failure or call.failure

    def end(self, call: Call, message: ToClient | None = None) -> None:
        """Forget a call that has its answer ``message``, or whose client is gone; its engine calls
        that still run are aborted."""
        self.metrics.answered(call, message, self._clock())
        call.is_over = True
        self.num_calls -= 1
        self._streaming.pop(id(call), None)
        for run_id in call.run_ids:
            if self._runs.pop(run_id, None) is not None:
                self._engine.post(Abort(run_id))
        if isinstance(call, GenerateCall | SelectCall):
            for uid in call.extra_uids:
                self._engine.release(uid)
        call.session.calls.pop(call.id, None)
        branch = call.branch
        if branch is not None and branch.call is call:
            branch.call = None
            if branch.is_runnable:
                self._runnable.append(branch)

    def fail_dispatched(self, reason: str) -> None:
        """The engine is gone with all it worked on."""
        for call, _ in list(self._runs.values()):
            self.fail(call, "engine_fault", reason, retryable=True)
        self._runs.clear()

    # ------------------------------------------------------------ deadlines

    @property
    def next_deadline(self) -> float | None:
        """The first deadline of an unanswered call, in monotonic seconds."""
        while self._deadlines and self._deadlines[0][2].is_over:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now: float) -> None:
        """Fail the calls whose deadline has passed."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, call = heapq.heappop(self._deadlines)
            self.fail(call, "deadline", "the call did not finish within its deadline")

    # ------------------------------------------------------------ what the engine sends

    def on_step(self, step: Step) -> None:
        now, metrics = self._clock(), self.metrics
        for sampled in step.sampled:
            call, index = self._runs.get(sampled.id, (None, 0))
            if isinstance(call, SelectCall):
                call.take(index, sampled)
            if not isinstance(call, GenerateCall):
                continue
            metrics.tokens(call, now)
            try:
                has_matched = call.outputs[index].take(sampled)
            except InvalidArgument as error:
                self.fail(call, "bad_request", str(error))
                continue
            if has_matched:
                self._engine.post(Abort(sampled.id))
            if call.op.stream:
                self._streaming[id(call)] = call

    def on_done(self, done: Done) -> None:
        call, index = self._runs.pop(done.id, (None, 0))
        if isinstance(call, SelectCall):
            self._on_option(call, done)
        if not isinstance(call, GenerateCall):
            return
        if done.reason == "deadline" and call.outputs[index].match is None:
            self.fail(call, "deadline", "the call did not finish within its deadline")
            return
        self.accounts.note(call, index, done.explained, done.usage)
        self.watched.note(call, done.explained, done.usage)
        if call.done(index, done, self._tokenizer):
            branch, output = call.branch, call.outputs[0]
            if branch is not None and call.prompt is not None:
                call.prompt.note_cached(done.usage.cached)
                branch.append("generated", output.text, output.token_ids)
            self.send_chunks(call)
            self.answer(call, call.answer())
        elif call.op.stream:
            self._streaming[id(call)] = call

    def _on_option(self, call: SelectCall, done: Done) -> None:
        """A constraint among the options of a selection has its text."""
        if done.reason == "deadline":
            self.fail(call, "deadline", "the call did not finish within its deadline")
            return
        try:
            if call.settle(done, self._tokenizer) and call.branch is not None:
                self._score(call.branch, call)
        except (InvalidArgument, CallFailed) as error:
            code = error.code if isinstance(error, CallFailed) else "bad_request"
            self.fail(call, code, str(error))

    def on_scored(self, scored: Scored) -> None:
        call, _ = self._runs.pop(scored.id, (None, 0))
        if not isinstance(call, SelectCall):
            return
        self.accounts.note(call, 0, scored.explained, scored.usage)
        self.watched.note(call, scored.explained, scored.usage)
        chosen = call.answer(scored, self._tokenizer)
        if call.branch is not None and call.prompt is not None:
            call.prompt.note_cached(scored.usage.cached)
            call.branch.append("chosen", chosen.text, call.options[chosen.index])
        self.answer(call, chosen)

    def on_reply(
        self,
        reply: EngineReply,
        completed: Callable[[QuestionCall, dict[str, Any]], dict[str, Any]],
    ) -> None:
        """``completed``: adds what the frontend knows to the engine's data."""
        call, _ = self._runs.pop(reply.id, (None, 0))
        if isinstance(call, QuestionCall):
            self.answer(call, Reply(call.id, completed(call, reply.data)))

    def whose(self, run_id: int) -> Call | None:
        """Return the call that an engine's call works for; None if it has been answered."""
        return self._runs.get(run_id, (None, 0))[0]

    def on_failed(self, failed: EngineFailed) -> None:
        if failed.id is None:
            return  # the engine ends after it, and whoever watches it says so
        call, _ = self._runs.pop(failed.id, (None, 0))
        if call is not None:
            self.fail(call, failed.code, failed.message, retryable=failed.retryable)

    # ------------------------------------------------------------ streams

    def send_chunks(self, call: GenerateCall) -> None:
        """Send the chunks of a streamed call that there is text and credit for."""
        try:
            for chunk in call.chunks():
                self._outbox.put(call.session.client_id, chunk)
        except InvalidArgument as error:
            self.fail(call, "bad_request", str(error))

    def send_all_chunks(self) -> None:
        """Send the chunks of all calls that got tokens since the last time."""
        streaming, self._streaming = self._streaming, {}
        for call in streaming.values():
            self.send_chunks(call)


def _no_score(branch: Branch, call: SelectCall) -> None:
    raise AssertionError("nobody scores selections")
