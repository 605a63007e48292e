"""Operations of branches, executed in the order they were sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from radixrt.errors import CallFailed, InvalidArgument
from radixrt.protocol import Append, Close, Constraint, Explain, Failed, Hold, Release, Reply
from radixrt.runtime import wire
from radixrt.runtime.frontend.branches import Branch, Fork, Refused, Segment
from radixrt.runtime.frontend.call_table import CallTable
from radixrt.runtime.frontend.calls import Call, GenerateCall, QuestionCall, SelectCall
from radixrt.runtime.frontend.chat import ChatFormat, end_of_turn_ids
from radixrt.runtime.frontend.engine_link import EngineLink
from radixrt.runtime.frontend.outbox import Outbox
from radixrt.runtime.frontend.sessions import MAX_QUEUED_OPS
from radixrt.runtime.frontend.validation import (
    check_constraint,
    check_deadline,
    check_hold,
    check_length,
    check_options,
    check_parts,
    check_pause,
    check_sampling,
)
from radixrt.runtime.frontend.writer import BranchWriter
from radixrt.runtime.tokenizer import Tokenizer

Operation = Append | Close | Hold | Release | Fork | Refused | Call


class BranchRunner:
    """Executes what waits for nothing: a branch goes on when its call has ended, a child when its
    parent has reached the fork. What cannot be done fails its branch, not its client."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        engine: EngineLink,
        calls: CallTable,
        outbox: Outbox,
        runnable: deque[Branch],
        *,
        ids: Iterator[int],
        clock: Callable[[], float],
        vocab_size: int,
        max_context: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._writer = BranchWriter(tokenizer, chat, max_context)
        self._end_ids = tokenizer.end_ids | end_of_turn_ids(chat, tokenizer)
        self._tool_format = chat.tool_format
        self._engine = engine
        self._calls = calls
        calls.on_options(self._score)
        self._outbox = outbox
        self._runnable = runnable
        self._ids = ids
        self._clock = clock
        self._vocab_size = vocab_size
        self._max_context = max_context

    def queue(self, branch: Branch, operation: Operation) -> None:
        """Add an operation to a branch; it is executed at once when nothing is before it."""
        session = branch.session
        if session.num_queued_ops >= MAX_QUEUED_OPS and isinstance(operation, Append):
            text = f"{MAX_QUEUED_OPS} operations wait for their branches; wait for answers"
            self.refuse(branch, text, "overloaded", retryable=True)
            operation = Refused(text)
        session.num_queued_ops += 1
        branch.ops.append(operation)
        if len(branch.ops) == 1 and branch.is_runnable:
            self._runnable.append(branch)
            self.advance()

    def advance(self) -> None:
        """Execute the operations of branches that wait for nothing."""
        while self._runnable:
            branch = self._runnable.popleft()
            while branch.is_runnable:
                branch.session.num_queued_ops -= 1
                self._execute(branch, branch.ops.popleft())

    def refuse(self, branch: Branch, text: str, code: str, *, retryable: bool = False) -> None:
        """Tell the client that an operation which is no call was refused."""
        failed = Failed(None, code, text, retryable=retryable, branch=branch.id)
        self._outbox.put(branch.session.client_id, failed)

    def release(self, branch: Branch, *, ended: bool = True) -> None:
        """The branch is closed: the engine may forget its lease; if it ``ended``, what it alone has
        cached goes first."""
        if branch.was_run:
            self._engine.release(branch.uid, ended=ended)

    def _execute(self, branch: Branch, operation: Operation) -> None:
        try:
            match operation:
                case Close():
                    branch.session.branches.pop(branch.id, None)
                    self.release(branch, ended=not operation.keep)
                case Release():
                    self.release(branch)
                case Hold():
                    check_hold(operation)
                    self._engine.post(wire.Hold(branch.uid, operation.ttl_s, operation.priority))
                case Fork():
                    self._fork(branch, operation.child)
                case Refused():
                    branch.failure = branch.failure or operation.message
                case Append():
                    self._append(branch, operation)
                case _:
                    self._start(branch, operation)
        except (InvalidArgument, CallFailed) as error:
            code = error.code if isinstance(error, CallFailed) else "bad_request"
            if isinstance(operation, Call):
                self._calls.fail(operation, code, str(error))
            else:
                branch.failure = branch.failure or str(error)
                self.refuse(branch, str(error), code)

    def _append(self, branch: Branch, append: Append) -> None:
        if branch.failure is None:
            check_parts(append.parts, self._vocab_size)
            for part in append.parts:
                self._writer.write(branch, part)

    def _fork(self, parent: Branch, child: Branch) -> None:
        try:
            if parent.failure is None:
                self._writer.settle(parent)
        except CallFailed as error:
            parent.failure = str(error)
            raise
        finally:
            child.become_copy_of(parent)
            if child.is_runnable:
                self._runnable.append(child)

    def _start(self, branch: Branch, call: Call) -> None:
        """Begin a call whose turn has come. Raises what is wrong with it."""
        if call.is_over:
            self._calls.poison(branch, call)
        elif branch.failure is not None:
            text = f"an earlier operation of branch {branch.id} failed: {branch.failure}"
            self._calls.fail(call, "branch_failed", text)
        elif isinstance(call, QuestionCall) and isinstance(call.op, Explain):
            self._calls.answer(call, Reply(call.id, {"calls": list(branch.accounts)}))
        elif isinstance(call, QuestionCall):
            self._writer.settle(branch)
            spans = branch.head.spans() if branch.head is not None else ()
            self._calls.answer(call, Reply(call.id, {"num_tokens": branch.num_tokens}, spans))
        else:
            if isinstance(call, GenerateCall):
                self._generate(branch, call)
            elif isinstance(call, SelectCall):
                self._select(branch, call)
            branch.call = call
            branch.was_run = True

    def _generate(self, branch: Branch, call: GenerateCall) -> None:
        check_sampling(call.op.sampling, self._vocab_size)
        if call.op.constraint is not None:
            check_constraint(call.op.constraint)
        check_deadline(call.op.deadline_s)
        check_pause(call.op.pause_s)
        self._writer.begin(branch)
        call.fit(self._max_context - branch.num_tokens)
        sampling = call.op.sampling
        assert branch.head is not None
        assert sampling.max_tokens is not None
        check_length(branch.num_tokens, sampling.max_tokens, self._max_context, "max_tokens")
        run_ids = [next(self._ids) for _ in range(sampling.n)]
        # Further outputs run beside the first, under leases of their own.
        call.extra_uids = [next(self._ids) for _ in range(sampling.n - 1)]
        uids = [branch.uid, *call.extra_uids]
        heal = self._take_back(branch) if call.op.heal else ""
        runs = call.start(
            branch.head,
            run_ids,
            uids,
            self._tokenizer,
            self._end_ids,
            self._time_left(call),
            self._tool_format,
            heal,
        )
        self._calls.dispatch(call, [*runs])

    def _take_back(self, branch: Branch) -> str:
        """Take the last token of a branch's text back, for it to be generated again as part of a
        token that may be longer; return its text. Nothing when it is no whole text of its own."""
        head = branch.head
        assert head is not None
        if head.kind != "text" or len(head.token_ids) < 1 or head.end < 2:
            return ""
        last = int(head.token_ids[-1])
        text = self._tokenizer.token_text(last)
        if not text or "\ufffd" in text or self._tokenizer.is_special(last):
            return ""
        branch.head = Segment(head.parent, "text", head.text, head.token_ids[:-1])
        return text

    def _select(self, branch: Branch, call: SelectCall) -> None:
        check_options(call.op)
        check_deadline(call.op.deadline_s)
        check_pause(call.op.pause_s)
        self._writer.begin(branch)
        assert branch.head is not None
        num_free = sum(isinstance(option, Constraint) for option in call.op.options)
        if not num_free:
            call.texts = [option for option in call.op.options if isinstance(option, str)]
            call.options = [self._tokenizer.encode(option) for option in call.texts]
            self._score(branch, call)
            return
        check_length(branch.num_tokens, call.op.max_tokens, self._max_context, "max_tokens")
        runs = call.generate(
            branch.head,
            [next(self._ids) for _ in range(num_free)],
            [next(self._ids) for _ in range(num_free)],
            self._tool_format,
            self._end_ids,
            self._time_left(call),
        )
        self._calls.dispatch(call, [*runs])

    def _score(self, branch: Branch, call: SelectCall) -> None:
        """Have the options of a selection scored; their texts are known."""
        longest = max(len(option) for option in call.options)
        check_length(branch.num_tokens, longest, self._max_context, "the longest option")
        assert branch.head is not None
        score = call.start(
            branch.head, next(self._ids), branch.uid, self._tokenizer, self._time_left(call)
        )
        self._calls.dispatch(call, [score])

    def _time_left(self, call: Call) -> float:
        return max(call.deadline - self._clock(), 0.001)
