"""The frontend: sessions, branches and calls between clients and the engine.

It does no I/O. ``on_client``, ``on_engine`` and ``on_tick`` take what has arrived; answers leave
through the two callables given at construction, gathered once per event. All of it runs on one
thread.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from radixrt.config import RuntimeConfig
from radixrt.errors import ProtocolError
from radixrt.protocol import (
    MAX_FRAME_BYTES,
    VERSION,
    Append,
    Cancel,
    Close,
    Credit,
    Explain,
    Failed,
    Generate,
    Goodbye,
    Hello,
    Hold,
    Limits,
    Message,
    ModelInfo,
    Open,
    Phase,
    Ping,
    Read,
    Release,
    Select,
    State,
    ToClient,
    Welcome,
)
from radixrt.runtime.frontend.branch_runner import BranchRunner
from radixrt.runtime.frontend.branches import Branch, Fork, Refused
from radixrt.runtime.frontend.call_metrics import Rejection
from radixrt.runtime.frontend.call_table import CallTable
from radixrt.runtime.frontend.calls import Call, GenerateCall, QuestionCall, SelectCall
from radixrt.runtime.frontend.chat import ChatFormat
from radixrt.runtime.frontend.engine_link import EngineLink
from radixrt.runtime.frontend.outbox import Outbox
from radixrt.runtime.frontend.pings import Pings
from radixrt.runtime.frontend.questions import Question, Questions
from radixrt.runtime.frontend.sessions import MAX_BRANCHES, MISSED_PINGS, PING_INTERVAL_S, Session
from radixrt.runtime.frontend.token_questions import TokenQuestions
from radixrt.runtime.tokenizer import Tokenizer
from radixrt.runtime.wire import (
    Done,
    EngineFailed,
    EnginePong,
    EngineReply,
    FromEngine,
    Progress,
    Ready,
    Scored,
    Step,
    ToEngine,
)

DEFAULT_DEADLINE_S = 3600.0
"""Bound of a call that names no deadline."""


class Frontend:
    """Serves clients with the tokens of one engine.

    Every call that arrives is answered by exactly one message, or its client is gone.
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
        ping_interval_s: float = PING_INTERVAL_S,
        watches_clients: bool = True,
    ) -> None:
        """``watches_clients``: drop clients that give no sign of life for three ping intervals."""
        self._config = config
        self._clock = clock
        self._ping_interval_s = ping_interval_s
        self._watches_clients = watches_clients
        self._epoch = uuid.uuid4().hex
        self._ids = itertools.count(1)
        self._sessions: dict[bytes, Session] = {}
        self._state = State("ready")
        self._outbox = Outbox(send_client)
        self._engine = EngineLink(send_engine)
        runnable: deque[Branch] = deque()
        self._calls = CallTable(self._engine, tokenizer, self._outbox, runnable, clock)
        self._runner = BranchRunner(
            tokenizer,
            chat,
            self._engine,
            self._calls,
            self._outbox,
            runnable,
            ids=self._ids,
            clock=clock,
            vocab_size=ready.vocab_size,
            max_context=ready.max_context,
        )
        self._pings = Pings(
            self._engine,
            self._outbox,
            self._calls.metrics.loop_lag,
            ids=self._ids,
            clock=clock,
            most=4 * config.max_clients,
        )
        self._limits = Limits(
            max_frame_bytes=MAX_FRAME_BYTES,
            max_calls=config.max_calls_per_client,
            max_branches=MAX_BRANCHES,
            max_context=ready.max_context,
            ping_interval_s=ping_interval_s,
        )
        self._model = ModelInfo(
            name=str(ready.info.get("model") or config.model_path.name),
            architecture=str(ready.info.get("architecture", "")),
            vocab_size=ready.vocab_size,
            context_length=ready.max_context,
            has_chat_template=chat.is_template,
        )
        self._questions = Questions(
            self._calls,
            self._engine,
            TokenQuestions(
                tokenizer, chat, vocab_size=ready.vocab_size, max_context=ready.max_context
            ),
            ids=self._ids,
            counters=self._counters,
            sessions=self._sessions,
            epoch=self._epoch,
            model_name=self._model.name,
        )

    # ------------------------------------------------------------ what happens

    def on_client(self, client_id: bytes, messages: Sequence[Message | ProtocolError]) -> None:
        """Handle what one client sent, in order."""
        for message in messages:
            session = self._sessions.get(client_id)
            if session is not None:
                session.last_seen = self._clock()
            if isinstance(message, ProtocolError):
                self._outbox.put(client_id, Failed(None, "bad_request", str(message)))
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
                    self._calls.on_step(message)
                case Done():
                    self._calls.on_done(message)
                case Scored():
                    self._calls.on_scored(message)
                case EngineReply():
                    self._calls.on_reply(message, self._questions.completed)
                case EngineFailed():
                    self._calls.on_failed(message)
                case EnginePong():
                    self._pings.pong(message)
                case Ready():
                    self._engine.came_up()
                    self._tell("ready")
                case Progress():
                    self._tell("restarting", f"{message.phase} {message.detail}".strip())
                case _:
                    pass
        self._calls.send_all_chunks()
        self._settle()

    def on_engine_down(self, reason: str) -> None:
        """The engine is gone: calls that it worked on fail. Branches stay; a new engine computes
        them again."""
        self._engine.went_down()
        self._calls.metrics.engine_restarts += 1
        self._calls.fail_dispatched(reason)
        self._pings.went_down()
        self._tell("restarting", reason)
        self._settle()

    def on_tick(self) -> None:
        """End calls whose deadline has passed and drop clients that are gone."""
        now = self._clock()
        self._calls.expire(now)
        self._pings.probe()
        if self._watches_clients:
            silence = MISSED_PINGS * self._ping_interval_s
            for session in list(self._sessions.values()):
                if now - session.last_seen > silence:
                    self._drop(session, Goodbye(f"no sign of life for {silence:g} s"))
        self._settle()

    def drop_client(self, client_id: bytes) -> None:
        """The client cannot be reached: end its calls and branches."""
        session = self._sessions.get(client_id)
        if session is not None:
            self._drop(session, None)
        self._outbox.discard(client_id)
        self._settle()

    def drain(self) -> None:
        """Refuse new calls from now on."""
        self._tell("draining", "the runtime is shutting down")
        self._settle()

    def close(self, reason: str) -> None:
        """Fail what still runs and say goodbye to every client."""
        for session in list(self._sessions.values()):
            for call in list(session.calls.values()):
                self._calls.fail(call, "engine_fault", reason, retryable=True)
            self._drop(session, Goodbye(reason))
        self._settle()

    @property
    def num_calls(self) -> int:
        """Calls that are not answered yet."""
        return self._calls.num_calls

    @property
    def num_clients(self) -> int:
        """Clients with an open session."""
        return len(self._sessions)

    @property
    def client_ids(self) -> set[bytes]:
        """Who has an open session."""
        return set(self._sessions)

    @property
    def next_deadline(self) -> float | None:
        """When ``on_tick`` has something to do for a call, in monotonic seconds."""
        return self._calls.next_deadline

    # ------------------------------------------------------------ sessions

    def _on_hello(self, client_id: bytes, hello: Hello) -> None:
        if hello.version != VERSION:
            text = (
                f"the client speaks version {hello.version} of the protocol, this runtime "
                f"{VERSION}: use the same version of radixrt at both ends"
            )
            self._outbox.put(client_id, Failed(None, "unsupported", text))
            return
        if client_id not in self._sessions:
            if self._state.phase == "draining":
                self._outbox.put(client_id, Goodbye("the runtime is shutting down"))
                return
            if len(self._sessions) >= self._config.max_clients:
                self._calls.metrics.rejected["clients"] += 1
                text = f"{len(self._sessions)} clients are connected, the most this runtime takes"
                self._outbox.put(client_id, Failed(None, "overloaded", text, retryable=True))
                return
            self._sessions[client_id] = Session(client_id, hello.client, self._clock())
        if hello.watch:
            self._sessions[client_id].watches = True
            self._outbox.put(client_id, self._state)
        self._outbox.put(client_id, Welcome(self._epoch, self._limits, self._model))

    def _tell(self, phase: Phase, detail: str = "") -> None:
        """Change the state and tell those who watch; a runtime that drains does nothing else."""
        if self._state.phase == "draining":
            return
        self._state = State(phase, detail)
        for session in self._sessions.values():
            if session.watches:
                self._outbox.put(session.client_id, self._state)

    def _refuse_stranger(self, client_id: bytes, message: Message) -> None:
        if isinstance(message, Goodbye):
            return
        text = "no session is open; send hello first"
        if isinstance(message, Generate | Select | Question):
            self._outbox.put(client_id, Failed(message.call, "bad_request", text))
        self._outbox.put(client_id, Goodbye(text))

    def _drop(self, session: Session, goodbye: Goodbye | None) -> None:
        """End a session: its calls are aborted, its branches released."""
        for branch in session.branches.values():
            branch.ops.clear()
            self._runner.release(branch)
        for call in list(session.calls.values()):
            self._calls.end(call)
        session.branches.clear()
        del self._sessions[session.client_id]
        if goodbye is not None:
            self._outbox.put(session.client_id, goodbye)

    # ------------------------------------------------------------ messages of clients

    def _on_message(self, session: Session, message: Message) -> None:
        match message:
            case Open():
                self._on_open(session, message)
            case Append() | Hold() | Release() | Close():
                self._on_operation(session, message)
            case Generate() | Select():
                self._on_call(session, message)
            case Cancel():
                if (call := session.calls.get(message.call)) is not None:
                    text = "the call was cancelled by its caller"
                    self._calls.fail(call, "cancelled", text)
            case Credit():
                call = session.calls.get(message.call)
                if isinstance(call, GenerateCall):
                    call.credit += max(0, message.chunks)
                    self._calls.send_chunks(call)
            case Ping():
                self._pings.ping(session.client_id, message.seq)
            case Goodbye():
                self._drop(session, None)
            case _ if isinstance(message, Question):
                self._on_question(session, message)
            case _:
                text = f"{type(message).__name__} is a message of the runtime, not of a client"
                self._outbox.put(session.client_id, Failed(None, "bad_request", text))

    def _on_open(self, session: Session, message: Open) -> None:
        existing = session.branches.get(message.branch)
        branch = Branch(session, message.branch, next(self._ids))
        if existing is not None:
            text = f"branch={message.branch}: the id is in use; number branches uniquely"
            self._runner.refuse(branch, text, "bad_request")
            self._runner.queue(existing, Refused(text))
        elif len(session.branches) >= MAX_BRANCHES:
            text = f"{MAX_BRANCHES} branches are open; close some"
            self._runner.refuse(branch, text, "overloaded", retryable=True)
        elif message.parent is None:
            branch.salt = _salt(message, branch.uid, self._epoch)
            branch.is_cached = message.cache != "off"
            session.branches[message.branch] = branch
        elif (parent := _find(session, message.parent)) is None:
            text = f"parent={message.parent}: no such branch; open it first"
            self._runner.refuse(branch, text, "bad_request")
        else:
            branch.is_waiting = True
            session.branches[message.branch] = branch
            self._runner.queue(parent, Fork(branch))

    def _on_operation(self, session: Session, message: Append | Hold | Release | Close) -> None:
        branch = _find(session, message.branch)
        if branch is not None:
            branch.is_closing = isinstance(message, Close)
            self._runner.queue(branch, message)
        elif isinstance(message, Append):
            text = f"branch={message.branch}: no such branch; open it first"
            failed = Failed(None, "bad_request", text, branch=message.branch)
            self._outbox.put(session.client_id, failed)

    def _on_call(self, session: Session, message: Generate | Select) -> None:
        branch = self._admit(session, message.call, message.branch)
        if branch is None:
            return
        deadline = self._clock() + _deadline_s(message.deadline_s)
        call: Call
        if isinstance(message, Generate):
            call = GenerateCall(session, message.call, branch, deadline, op=message)
        else:
            call = SelectCall(session, message.call, branch, deadline, op=message)
        self._calls.register(call)
        self._runner.queue(branch, call)

    def _on_question(self, session: Session, message: Question) -> None:
        branch: Branch | None = None
        if isinstance(message, Read | Explain) and message.branch is not None:
            branch = self._admit(session, message.call, message.branch)
            if branch is None:
                return
        elif not self._is_fresh(session, message.call):
            return
        deadline = self._clock() + DEFAULT_DEADLINE_S
        call = QuestionCall(session, message.call, branch, deadline, op=message)
        self._calls.register(call)
        if branch is not None:
            self._runner.queue(branch, call)
            return
        self._questions.ask(call)

    def _admit(self, session: Session, call_id: int, branch_id: int) -> Branch | None:
        """Return the branch of a call that may be queued; else refuse the call."""
        branch = _find(session, branch_id)
        if not self._is_fresh(session, call_id):
            refusal = f"call={call_id}: the id is in use"
        elif branch is None:
            refusal = f"branch={branch_id}: no such branch; open it first"
            self._outbox.put(session.client_id, Failed(call_id, "bad_request", refusal))
        elif (overload := self._overload(session)) is not None:
            reason, refusal = overload
            self._calls.metrics.rejected[reason] += 1
            failed = Failed(call_id, "overloaded", refusal, retryable=True)
            self._outbox.put(session.client_id, failed)
        else:
            return branch
        if branch is not None:
            self._runner.queue(branch, Refused(refusal))
        return None

    def _is_fresh(self, session: Session, call_id: int) -> bool:
        """Whether no unanswered call has the id; one that has keeps it: the answer names none."""
        if call_id not in session.calls:
            return True
        text = f"call={call_id}: the id is in use; number calls uniquely"
        self._outbox.put(session.client_id, Failed(None, "bad_request", text))
        return False

    def _overload(self, session: Session) -> tuple[Rejection, str] | None:
        """Return why a call cannot be taken now, as a word and as text."""
        if self._state.phase == "draining":
            return "draining", "the runtime is shutting down"
        if (own := len(session.calls)) >= self._config.max_calls_per_client:
            text = f"{own} calls of this client are unanswered, the most it may have"
            return "client_calls", text
        if (waiting := self._calls.num_calls) >= self._config.max_queue:
            return "queue", f"{waiting} calls wait for this runtime, the most it takes"
        return None

    def _counters(self) -> dict[str, Any]:
        return {
            "state": self._state.phase,
            "engine_up": self._engine.is_up,
            "epoch": self._epoch,
            "clients": len(self._sessions),
            "branches": sum(len(session.branches) for session in self._sessions.values()),
            "client_calls": self._calls.num_calls,
            **self._calls.metrics.snapshot(),
        }

    def _settle(self) -> None:
        """Let branches go on, then send everything that came of this event."""
        self._runner.advance()
        self._engine.flush()
        self._outbox.flush()


def _find(session: Session, branch_id: int) -> Branch | None:
    branch = session.branches.get(branch_id)
    return None if branch is None or branch.is_closing else branch


def _salt(message: Open, uid: int, epoch: str) -> str:
    """Return what sets the cache of a new branch apart: its first field tells why."""
    salt = f"tenant={message.tenant}" if message.tenant else ""
    if message.cache == "private":
        salt = f"cache=private {epoch} {uid};{salt}"
    return salt


def _deadline_s(asked: float | None) -> float:
    usable = asked is not None and 0 < asked < DEFAULT_DEADLINE_S
    return asked if usable and asked is not None else DEFAULT_DEADLINE_S
