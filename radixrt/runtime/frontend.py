"""The frontend: sessions, branches and calls between clients and the engine.

It does no I/O. ``on_client``, ``on_engine`` and ``on_tick`` take what has arrived; answers leave
through the two callables given at construction, gathered once per event. All of it runs on one
thread.
"""

from __future__ import annotations

import heapq
import itertools
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from radixrt.config import RuntimeConfig
from radixrt.errors import CallFailed, InvalidArgument, ProtocolError
from radixrt.protocol import (
    MAX_FRAME_BYTES,
    VERSION,
    Append,
    Cancel,
    Close,
    Credit,
    Failed,
    Flush,
    Generate,
    Goodbye,
    Hello,
    Limits,
    Message,
    ModelInfo,
    Open,
    Ping,
    Pong,
    Read,
    Reply,
    Select,
    Stats,
    ToClient,
    ToRuntime,
    Welcome,
)
from radixrt.runtime.branches import Branch, Fork, Refused
from radixrt.runtime.calls import Call, GenerateCall, QuestionCall, SelectCall
from radixrt.runtime.chat import ChatFormat, end_of_turn_ids
from radixrt.runtime.engine_link import EngineLink
from radixrt.runtime.sessions import (
    MAX_BRANCHES,
    MAX_QUEUED_OPS,
    MISSED_PINGS,
    PING_INTERVAL_S,
    Session,
)
from radixrt.runtime.tokenizer import Tokenizer
from radixrt.runtime.validation import (
    check_deadline,
    check_length,
    check_options,
    check_parts,
    check_sampling,
)
from radixrt.runtime.wire import (
    Abort,
    Done,
    EngineFailed,
    EnginePing,
    EnginePong,
    EngineReply,
    FlushCache,
    FromEngine,
    QueryStats,
    Ready,
    Scored,
    Step,
    ToEngine,
)
from radixrt.runtime.writer import BranchWriter

DEFAULT_DEADLINE_S = 3600.0
"""Bound of a call that names no deadline."""


class Frontend:
    """Serves clients with the tokens of one engine.

    Every call that arrives is answered by exactly one message, or its client is gone. Engine calls
    of an answered call may still run; what they send is ignored.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        ready: Ready,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        *,
        send_client: Callable[[bytes, list[ToClient]], None],
        send_engine: Callable[[list[ToEngine]], None],
        clock: Callable[[], float] = time.monotonic,
        watches_clients: bool = True,
    ) -> None:
        """``watches_clients``: drop clients that give no sign of life for three ping intervals."""
        self._config = config
        self._tokenizer = tokenizer
        self._send_client = send_client
        self._engine = EngineLink(send_engine)
        self._clock = clock
        self._watches_clients = watches_clients
        self._epoch = uuid.uuid4().hex
        self._vocab_size = ready.vocab_size
        self._max_context = ready.max_context
        self._info: dict[str, Any] = ready.info
        self._chat = chat
        self._writer = BranchWriter(tokenizer, chat, ready.max_context)
        self._end_ids = tokenizer.end_ids | end_of_turn_ids(chat, tokenizer)
        self._sessions: dict[bytes, Session] = {}
        self._runs: dict[int, tuple[Call, int]] = {}
        self._pings: dict[int, tuple[bytes, int]] = {}
        self._deadlines: list[tuple[float, int, Call]] = []
        self._outboxes: dict[bytes, list[ToClient]] = {}
        self._runnable: deque[Branch] = deque()
        self._streaming: dict[int, GenerateCall] = {}
        self._ids = itertools.count(1)
        self._down_since = 0.0
        self._num_calls = 0
        self._is_draining = False

    # ------------------------------------------------------------ what happens

    def on_client(
        self, client_id: bytes, messages: Sequence[ToRuntime | Message | ProtocolError]
    ) -> None:
        """Handle what one client sent, in order."""
        for message in messages:
            session = self._sessions.get(client_id)
            if session is not None:
                session.last_seen = self._clock()
            if isinstance(message, ProtocolError):
                self._reply(client_id, Failed(None, "bad_request", str(message)))
            elif isinstance(message, Hello):
                self._on_hello(client_id, message)
            elif session is None:
                self._refuse_stranger(client_id, message)
            else:
                self._on_message(session, message)
        self._settle()

    def on_engine(self, messages: Sequence[FromEngine]) -> None:
        """Handle what the engine sent, in order."""
        for message in messages:
            match message:
                case Step():
                    self._on_step(message)
                case Done():
                    self._on_done(message)
                case Scored():
                    self._on_scored(message)
                case EngineReply():
                    self._on_reply(message)
                case EngineFailed():
                    self._on_engine_failed(message)
                case EnginePong():
                    if (ping := self._pings.pop(message.seq, None)) is not None:
                        self._reply(ping[0], Pong(ping[1], message.lag_ms))
                case Ready():
                    self._engine.came_up()
                case _:
                    pass  # Progress concerns who started the engine
        self._settle()

    def on_engine_down(self, reason: str) -> None:
        """The engine is gone: calls that it worked on fail. Branches stay; a new engine computes
        them again."""
        self._engine.went_down()
        self._down_since = self._clock()
        for call, _ in list(self._runs.values()):
            self._fail(call, "engine_fault", reason, retryable=True)
        self._runs.clear()
        for client_id, seq in self._pings.values():
            self._reply(client_id, Pong(seq, 0.0))
        self._pings.clear()
        self._settle()

    def on_tick(self) -> None:
        """End calls whose deadline has passed and drop clients that are gone."""
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, call = heapq.heappop(self._deadlines)
            self._fail(call, "deadline", "the call did not finish within its deadline")
        if self._watches_clients:
            silence = MISSED_PINGS * PING_INTERVAL_S
            for session in list(self._sessions.values()):
                if now - session.last_seen > silence:
                    self._drop(session, Goodbye(f"no sign of life for {silence:g} s"))
        self._settle()

    def drop_client(self, client_id: bytes) -> None:
        """The client cannot be reached: end its calls and branches."""
        session = self._sessions.get(client_id)
        if session is not None:
            self._drop(session, None)
        self._outboxes.pop(client_id, None)
        self._settle()

    def drain(self) -> None:
        """Refuse new calls from now on."""
        self._is_draining = True

    def close(self, reason: str) -> None:
        """Fail what still runs and say goodbye to every client."""
        for session in list(self._sessions.values()):
            for call in list(session.calls.values()):
                self._fail(call, "engine_fault", reason, retryable=True)
            self._drop(session, Goodbye(reason))
        self._settle()

    @property
    def num_calls(self) -> int:
        """Calls that are not answered yet."""
        return self._num_calls

    @property
    def num_clients(self) -> int:
        return len(self._sessions)

    @property
    def next_deadline(self) -> float | None:
        """When ``on_tick`` has something to do for a call, in monotonic seconds."""
        while self._deadlines and self._deadlines[0][2].is_over:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    # ------------------------------------------------------------ sessions

    def _on_hello(self, client_id: bytes, hello: Hello) -> None:
        if hello.version != VERSION:
            message = f"protocol version {hello.version}; this runtime speaks {VERSION}"
            self._reply(client_id, Failed(None, "unsupported", message))
            return
        if client_id not in self._sessions:
            if self._is_draining:
                self._reply(client_id, Goodbye("the runtime is shutting down"))
                return
            if len(self._sessions) >= self._config.max_clients:
                message = (
                    f"{len(self._sessions)} clients are connected, the most this runtime takes"
                )
                self._reply(client_id, Failed(None, "overloaded", message, retryable=True))
                return
            self._sessions[client_id] = Session(client_id, hello.client, self._clock())
        self._reply(client_id, self._welcome())

    def _welcome(self) -> Welcome:
        path = self._config.model_path
        return Welcome(
            self._epoch,
            Limits(
                max_frame_bytes=MAX_FRAME_BYTES,
                max_calls=self._config.max_calls_per_client,
                max_branches=MAX_BRANCHES,
                max_context=self._max_context,
                ping_interval_s=PING_INTERVAL_S,
            ),
            ModelInfo(
                name=str(self._info.get("model") or path.name),
                architecture=str(self._info.get("architecture", "")),
                vocab_size=self._vocab_size,
                context_length=self._max_context,
                has_chat_template=self._chat.is_template,
            ),
        )

    def _refuse_stranger(self, client_id: bytes, message: Message) -> None:
        if isinstance(message, Goodbye):
            return
        call = getattr(message, "call", None)
        if isinstance(call, int) and not isinstance(message, Cancel | Credit):
            text = "no session is open; send hello first"
            self._reply(client_id, Failed(call, "bad_request", text))
        self._reply(client_id, Goodbye("no session is open; send hello first"))

    def _drop(self, session: Session, goodbye: Goodbye | None) -> None:
        """End a session: its calls are aborted, its branches released."""
        for call in list(session.calls.values()):
            self._end(call)
        for branch in session.branches.values():
            branch.ops.clear()
            self._release(branch)
        del self._sessions[session.client_id]
        if goodbye is not None:
            self._reply(session.client_id, goodbye)

    # ------------------------------------------------------------ messages of clients

    def _on_message(self, session: Session, message: ToRuntime | Message) -> None:
        match message:
            case Open():
                self._on_open(session, message)
            case Append():
                self._queue(session, message.branch, message)
            case Generate() | Select():
                self._on_call(session, message)
            case Close():
                branch = self._queue(session, message.branch, message)
                if branch is not None:
                    branch.is_closing = True
            case Cancel():
                if (call := session.calls.get(message.call)) is not None:
                    self._fail(call, "cancelled", "the call was cancelled by its caller")
            case Credit():
                call = session.calls.get(message.call)
                if isinstance(call, GenerateCall):
                    call.credit += max(0, message.chunks)
                    self._send_chunks(call)
            case Read() | Flush() | Stats():
                self._on_question(session, message)
            case Ping():
                self._on_ping(session, message)
            case Goodbye():
                self._drop(session, None)
            case _:
                text = f"{type(message).__name__} is a message of the runtime, not of a client"
                self._reply(session.client_id, Failed(None, "bad_request", text))

    def _on_open(self, session: Session, message: Open) -> None:
        existing = session.branches.get(message.branch)
        if existing is not None:
            text = f"branch={message.branch}: the id is in use; number branches uniquely"
            self._refuse_op(session, message.branch, text)
            self._queue_op(session, existing, Refused(text))
            return
        if len(session.branches) >= MAX_BRANCHES:
            text = f"{MAX_BRANCHES} branches are open; close some"
            self._refuse_op(session, message.branch, text, "overloaded", retryable=True)
            return
        branch = Branch(session.client_id, message.branch, next(self._ids))
        if message.parent is None:
            session.branches[message.branch] = branch
            return
        parent = self._find(session, message.parent)
        if parent is None:
            text = f"parent={message.parent}: no such branch; open it first"
            self._refuse_op(session, message.branch, text)
            return
        branch.is_waiting = True
        session.branches[message.branch] = branch
        self._queue_op(session, parent, Fork(branch))

    def _on_call(self, session: Session, message: Generate | Select) -> None:
        branch = self._admit(session, message.call, message.branch)
        if branch is None:
            return
        deadline = self._clock() + _deadline_s(message.deadline_s)
        call: Call
        if isinstance(message, Generate):
            call = GenerateCall(session.client_id, message.call, branch, deadline, op=message)
        else:
            call = SelectCall(session.client_id, message.call, branch, deadline, op=message)
        self._register(session, call)
        self._queue_op(session, branch, call)

    def _on_question(self, session: Session, message: Read | Flush | Stats) -> None:
        branch: Branch | None = None
        if isinstance(message, Read):
            branch = self._admit(session, message.call, message.branch)
            if branch is None:
                return
        elif not self._is_fresh(session, message.call):
            return
        deadline = self._clock() + DEFAULT_DEADLINE_S
        call = QuestionCall(session.client_id, message.call, branch, deadline, op=message)
        self._register(session, call)
        if branch is not None:
            self._queue_op(session, branch, call)
            return
        run_id = next(self._ids)
        call.run_ids = [run_id]
        self._runs[run_id] = (call, 0)
        is_flush = isinstance(message, Flush)
        self._engine.post(FlushCache(run_id) if is_flush else QueryStats(run_id))

    def _on_ping(self, session: Session, message: Ping) -> None:
        if not self._engine.is_up:
            lag_ms = 1000 * (self._clock() - self._down_since)
            self._reply(session.client_id, Pong(message.seq, lag_ms))
            return
        seq = next(self._ids)
        self._pings[seq] = (session.client_id, message.seq)
        if len(self._pings) > 4 * self._config.max_clients:
            self._pings.pop(next(iter(self._pings)))
        self._engine.post(EnginePing(seq, time.monotonic()))

    def _admit(self, session: Session, call_id: int, branch_id: int) -> Branch | None:
        """Return the branch of a call that may be queued; else refuse the call."""
        branch = self._find(session, branch_id)
        if not self._is_fresh(session, call_id):
            refusal = f"call={call_id}: the id is in use"
        elif branch is None:
            refusal = f"branch={branch_id}: no such branch; open it first"
            self._reply(session.client_id, Failed(call_id, "bad_request", refusal))
        elif (refusal := self._overload(session)) != "":
            self._reply(session.client_id, Failed(call_id, "overloaded", refusal, retryable=True))
        else:
            return branch
        if branch is not None:
            self._queue_op(session, branch, Refused(refusal))
        return None

    def _is_fresh(self, session: Session, call_id: int) -> bool:
        """Whether no unanswered call has the id; one that has keeps it: the answer names none."""
        if call_id not in session.calls:
            return True
        text = f"call={call_id}: the id is in use; number calls uniquely"
        self._reply(session.client_id, Failed(None, "bad_request", text))
        return False

    def _overload(self, session: Session) -> str:
        if self._is_draining:
            return "the runtime is shutting down"
        if len(session.calls) >= self._config.max_calls_per_client:
            return f"{len(session.calls)} calls of this client are unanswered, the most it may have"
        if self._num_calls >= self._config.max_queue:
            return f"{self._num_calls} calls wait for this runtime, the most it takes"
        return ""

    def _find(self, session: Session, branch_id: int) -> Branch | None:
        branch = session.branches.get(branch_id)
        return None if branch is None or branch.is_closing else branch

    def _refuse_op(
        self,
        session: Session,
        branch_id: int,
        text: str,
        code: str = "bad_request",
        *,
        retryable: bool = False,
    ) -> None:
        """Refuse an operation that is no call."""
        failed = Failed(None, code, text, retryable=retryable, branch=branch_id)
        self._reply(session.client_id, failed)

    # ------------------------------------------------------------ operations of branches, in order

    def _queue(self, session: Session, branch_id: int, op: Append | Close) -> Branch | None:
        branch = self._find(session, branch_id)
        if branch is None:
            if not isinstance(op, Close):
                text = f"branch={branch_id}: no such branch; open it first"
                self._refuse_op(session, branch_id, text)
            return None
        self._queue_op(session, branch, op)
        return branch

    def _queue_op(
        self, session: Session, branch: Branch, op: Append | Close | Fork | Refused | Call
    ) -> None:
        if session.num_queued_ops >= MAX_QUEUED_OPS and isinstance(op, Append):
            text = f"{MAX_QUEUED_OPS} operations wait for their branches; wait for answers"
            self._refuse_op(session, branch.id, text, "overloaded", retryable=True)
            op = Refused(text)
        session.num_queued_ops += 1
        branch.ops.append(op)
        if len(branch.ops) == 1 and branch.is_runnable:
            self._runnable.append(branch)
            self._advance()

    def _advance(self) -> None:
        """Execute operations of branches that wait for nothing."""
        while self._runnable:
            branch = self._runnable.popleft()
            session = self._sessions.get(branch.client_id)
            while session is not None and branch.is_runnable:
                session.num_queued_ops -= 1
                self._execute(session, branch, branch.ops.popleft())

    def _execute(
        self, session: Session, branch: Branch, op: Append | Close | Fork | Refused | Call
    ) -> None:
        try:
            match op:
                case Close():
                    session.branches.pop(branch.id, None)
                    self._release(branch)
                case Fork():
                    self._fork(branch, op.child)
                case Refused():
                    branch.failure = branch.failure or op.message
                case Append():
                    if branch.failure is None:
                        check_parts(op.parts, self._vocab_size)
                        for part in op.parts:
                            self._writer.write(branch, part)
                case _:
                    self._start(branch, op)
        except (InvalidArgument, CallFailed) as error:
            code = error.code if isinstance(error, CallFailed) else "bad_request"
            if isinstance(op, Call):
                self._fail(op, code, str(error))
            else:
                branch.failure = branch.failure or str(error)
                self._refuse_op(session, branch.id, str(error), code)

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
        """Begin a call whose turn has come; raises what is wrong with it."""
        if call.is_over:
            self._poison(branch, call)
            return
        if branch.failure is not None:
            text = f"an earlier operation of branch {branch.id} failed: {branch.failure}"
            self._fail(call, "branch_failed", text)
            return
        if isinstance(call, QuestionCall):
            self._writer.settle(branch)
            spans = branch.head.spans() if branch.head is not None else ()
            self._answer(call, Reply(call.id, {"num_tokens": branch.num_tokens}, spans))
            return
        deadline_s = max(call.deadline - self._clock(), 0.001)
        if isinstance(call, GenerateCall):
            self._start_generate(branch, call, deadline_s)
        elif isinstance(call, SelectCall):
            self._start_select(branch, call, deadline_s)
        branch.call = call
        branch.was_run = True

    def _start_generate(self, branch: Branch, call: GenerateCall, deadline_s: float) -> None:
        sampling = call.op.sampling
        check_sampling(sampling, self._vocab_size)
        check_deadline(call.op.deadline_s)
        self._writer.begin(branch)
        check_length(branch.num_tokens, sampling.max_tokens, self._max_context, "max_tokens")
        assert branch.head is not None
        run_ids = [next(self._ids) for _ in range(sampling.n)]
        # Further outputs run beside the first, under leases of their own.
        uids = [branch.uid, *(next(self._ids) for _ in range(sampling.n - 1))]
        runs = call.start(branch.head, run_ids, uids, self._tokenizer, self._end_ids, deadline_s)
        for index, run in enumerate(runs):
            self._runs[run.id] = (call, index)
            self._engine.post(run)

    def _start_select(self, branch: Branch, call: SelectCall, deadline_s: float) -> None:
        check_options(call.op)
        check_deadline(call.op.deadline_s)
        self._writer.begin(branch)
        call.options = [self._tokenizer.encode(option) for option in call.op.options]
        longest = max(len(option) for option in call.options)
        check_length(branch.num_tokens, longest, self._max_context, "the longest option")
        assert branch.head is not None
        run_id = next(self._ids)
        score = call.start(branch.head, run_id, branch.uid, self._tokenizer, deadline_s)
        self._runs[run_id] = (call, 0)
        self._engine.post(score)

    # ------------------------------------------------------------ messages of the engine

    def _on_step(self, step: Step) -> None:
        for sampled in step.sampled:
            call, index = self._runs.get(sampled.id, (None, 0))
            if not isinstance(call, GenerateCall):
                continue
            try:
                has_matched = call.outputs[index].feed(sampled.token_ids, sampled.logprobs)
            except InvalidArgument as error:
                self._fail(call, "bad_request", str(error))
                continue
            if has_matched:
                self._engine.post(Abort(sampled.id))
            if call.op.stream:
                self._streaming[id(call)] = call

    def _on_done(self, done: Done) -> None:
        call, index = self._runs.pop(done.id, (None, 0))
        if not isinstance(call, GenerateCall):
            return
        if done.reason == "deadline" and call.outputs[index].match is None:
            self._fail(call, "deadline", "the call did not finish within its deadline")
            return
        if call.done(index, done, self._tokenizer):
            branch, output = call.branch, call.outputs[0]
            if branch is not None and call.prompt is not None:
                call.prompt.note_cached(done.usage.cached)
                branch.append("generated", output.text, output.token_ids)
            self._send_chunks(call)
            self._answer(call, call.answer())
        elif call.op.stream:
            self._streaming[id(call)] = call

    def _on_scored(self, scored: Scored) -> None:
        call, _ = self._runs.pop(scored.id, (None, 0))
        if not isinstance(call, SelectCall):
            return
        chosen = call.answer(scored, self._tokenizer)
        if call.branch is not None and call.prompt is not None:
            call.prompt.note_cached(scored.usage.cached)
            text = call.op.options[chosen.index]
            call.branch.append("chosen", text, call.options[chosen.index])
        self._answer(call, chosen)

    def _on_reply(self, reply: EngineReply) -> None:
        call, _ = self._runs.pop(reply.id, (None, 0))
        if isinstance(call, QuestionCall):
            own = self._counters() if isinstance(call.op, Stats) else {}
            self._answer(call, Reply(call.id, {**reply.data, **own}))

    def _on_engine_failed(self, failed: EngineFailed) -> None:
        if failed.id is None:
            return  # the engine ends after it; whoever watches it calls on_engine_down
        call, _ = self._runs.pop(failed.id, (None, 0))
        if call is not None:
            self._fail(call, failed.code, failed.message, retryable=failed.retryable)

    def _counters(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "clients": len(self._sessions),
            "branches": sum(len(session.branches) for session in self._sessions.values()),
            "client_calls": self._num_calls,
        }

    # ------------------------------------------------------------ ends

    def _register(self, session: Session, call: Call) -> None:
        session.calls[call.id] = call
        self._num_calls += 1
        if len(self._deadlines) > 2 * self._num_calls + 1024:
            self._deadlines = [entry for entry in self._deadlines if not entry[2].is_over]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (call.deadline, next(self._ids), call))

    def _answer(self, call: Call, message: ToClient) -> None:
        """Send the one answer of a call and let its branch go on."""
        if not call.is_over:
            self._end(call)
            self._reply(call.client_id, message)

    def _fail(self, call: Call, code: str, text: str, *, retryable: bool = False) -> None:
        if call.is_over:
            return
        call.failure = text
        if call.branch is not None and call not in call.branch.ops:
            self._poison(call.branch, call)
        self._answer(call, Failed(call.id, code, text, retryable=retryable))

    def _poison(self, branch: Branch, call: Call) -> None:
        """What follows a failed call in its branch fails; a call that waits does so in its turn."""
        if not isinstance(call, QuestionCall):  # reading changes nothing
            branch.failure = branch.failure or call.failure

    def _end(self, call: Call) -> None:
        """Forget a call; its engine calls that still run are aborted."""
        call.is_over = True
        self._num_calls -= 1
        self._streaming.pop(id(call), None)
        for run_id in call.run_ids:
            if self._runs.pop(run_id, None) is not None:
                self._engine.post(Abort(run_id))
        session = self._sessions.get(call.client_id)
        if session is not None:
            session.calls.pop(call.id, None)
        branch = call.branch
        if branch is not None and branch.call is call:
            branch.call = None
            if branch.is_runnable:
                self._runnable.append(branch)

    def _release(self, branch: Branch) -> None:
        if branch.was_run:
            self._engine.release(branch.uid)

    def _send_chunks(self, call: GenerateCall) -> None:
        try:
            for chunk in call.chunks():
                self._reply(call.client_id, chunk)
        except InvalidArgument as error:
            self._fail(call, "bad_request", str(error))

    def _reply(self, client_id: bytes, message: ToClient) -> None:
        self._outboxes.setdefault(client_id, []).append(message)

    def _settle(self) -> None:
        """Let branches go on, then send everything that came of this event."""
        if self._streaming:
            calls = list(self._streaming.values())
            self._streaming.clear()
            for call in calls:
                self._send_chunks(call)
        self._advance()
        self._engine.flush()
        if self._outboxes:
            outboxes, self._outboxes = self._outboxes, {}
            for client_id, messages in outboxes.items():
                self._send_client(client_id, messages)


def _deadline_s(asked: float | None) -> float:
    usable = asked is not None and 0 < asked < DEFAULT_DEADLINE_S
    return asked if usable and asked is not None else DEFAULT_DEADLINE_S
