"""Branches at an endpoint: their operations in the order sent, their calls to one outcome each."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from radixrt.errors import CallFailed, InvalidArgument, RadixError, Unsupported
from radixrt.lang.openai.answer import Piece
from radixrt.lang.openai.generation import added, generate
from radixrt.lang.openai.http import Http
from radixrt.lang.openai.prompt import Prompt
from radixrt.lang.openai.request import Served
from radixrt.lang.openai.scoring import Scorer
from radixrt.lang.openai.selection import Selector
from radixrt.protocol import (
    Append,
    Chunk,
    Close,
    Failed,
    Finished,
    Generate,
    Open,
    Read,
    Reply,
    Select,
    ToClient,
    TokenLogprob,
    Usage,
)

Operation = Append | Generate | Select | Read | Close


@dataclass(frozen=True, slots=True)
class _Fork:
    child: int


@dataclass(slots=True, eq=False)
class _Branch:
    """A branch: what it holds, and the operations that wait for the one that runs."""

    prompt: Prompt = field(default_factory=Prompt)
    salt: str = ""
    has_failed: bool = False
    is_busy: bool = False
    waiting: deque[Operation | _Fork] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class _Stream:
    """What a streamed call may still send, and what waits for credit."""

    credit: int
    pending: dict[int, Piece] = field(default_factory=dict)


class Branches:
    """All branches of a session. Used from one event loop; ``put`` sends an answer."""

    def __init__(self, http: Http, served: Served, put: Callable[[ToClient], None]) -> None:
        self._http = http
        self._served = served
        self._put = put
        self._selector = Selector(http, served)
        self._branches: dict[int, _Branch] = {}
        self._queued: set[int] = set()
        self._cancelled: set[int] = set()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, _Stream] = {}
        self.usage = Usage()

    def __len__(self) -> int:
        return len(self._branches)

    async def end(self) -> None:
        """Cancel what runs."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def submit(self, operation: Operation) -> None:
        """Execute an operation once those before it on its branch have ended."""
        branch = self._branches.get(operation.branch)
        if branch is None:
            if isinstance(operation, Generate | Select | Read):
                self._fail(operation.call, CallFailed("there is no such branch"), "bad_request")
            return
        if isinstance(operation, Generate | Select):
            self._queued.add(operation.call)
        branch.waiting.append(operation)
        self._advance(branch)

    def cancel(self, call: int) -> None:
        """End a call early; nothing happens to one that has ended."""
        if (task := self._tasks.get(call)) is not None:
            task.cancel()
        elif call in self._queued:
            self._cancelled.add(call)

    def grant(self, call: int, chunks: int) -> None:
        """Let a streamed call send more chunks."""
        if (stream := self._streams.get(call)) is not None:
            stream.credit += chunks
            self._send_chunks(call, stream)

    def open(self, message: Open) -> None:
        """Begin a branch, empty or as a copy of its parent."""
        if message.parent is None:
            branch = self._branches[message.branch] = _Branch()
            try:
                branch.salt = self._salt(message)
            except Unsupported as error:
                self._refuse(message.branch, branch, error)
            return
        parent = self._branches.get(message.parent)
        child = self._branches[message.branch] = _Branch(is_busy=True)
        if parent is None:
            child.is_busy, child.has_failed = False, True
            return
        parent.waiting.append(_Fork(message.branch))
        self._advance(parent)

    def _salt(self, message: Open) -> str:
        """The name of the cache that a branch asks for; empty is the one that everybody shares."""
        if message.cache == "shared" and not message.tenant:
            return ""
        if message.cache == "off" or not self._served.dialect.cache_field:
            wish = f"cache={message.cache!r}" if message.cache != "shared" else "tenant="
            raise Unsupported(
                f"{wish} cannot be said to an endpoint of dialect {self._served.dialect.name}; "
                "leave it out"
            )
        return f"{message.tenant}/{uuid.uuid4().hex if message.cache == 'private' else ''}"

    def _advance(self, branch: _Branch) -> None:
        while branch.waiting and not branch.is_busy:
            match operation := branch.waiting.popleft():
                case Append():
                    self._append(branch, operation)
                case Read():
                    self._put(Reply(operation.call, spans=branch.prompt.spans()))
                case Close():
                    self._branches.pop(operation.branch, None)
                case _Fork():
                    child = self._branches.get(operation.child)
                    if child is not None:
                        child.prompt, child.salt = branch.prompt, branch.salt
                        child.has_failed, child.is_busy = branch.has_failed, False
                        self._advance(child)
                case Generate() | Select():
                    self._start(branch, operation)

    def _append(self, branch: _Branch, operation: Append) -> None:
        try:
            for part in operation.parts:
                branch.prompt = branch.prompt.append(part)
        except InvalidArgument as error:
            self._refuse(operation.branch, branch, error)
        except CallFailed as error:
            self._refuse(operation.branch, branch, error)

    def _refuse(self, branch_id: int, branch: _Branch, error: RadixError) -> None:
        branch.has_failed = True
        code = error.code if isinstance(error, CallFailed) else "bad_request"
        self._put(Failed(None, code, str(error), branch=branch_id))

    # ------------------------------------------------------------ calls

    def _start(self, branch: _Branch, op: Generate | Select) -> None:
        self._queued.discard(op.call)
        if op.call in self._cancelled:
            self._cancelled.discard(op.call)
            branch.has_failed = True
            self._fail(op.call, CallFailed("cancelled as asked"), "cancelled")
        elif branch.has_failed:
            error = CallFailed("an earlier operation of the branch failed")
            self._fail(op.call, error, "branch_failed")
        else:
            branch.is_busy = branch.has_failed = True  # unless it ends well
            task = asyncio.create_task(self._run_call(branch, op))
            task.add_done_callback(lambda task: self._ended(branch, op.call, task))
            self._tasks[op.call] = task

    def _ended(self, branch: _Branch, call: int, task: asyncio.Task[None]) -> None:
        """Let the branch go on. A task that is cancelled before it began has run none of its code,
        so a cancelled call is answered here."""
        if task.cancelled():
            self._fail(call, CallFailed("cancelled as asked"), "cancelled")
        self._tasks.pop(call, None)
        self._streams.pop(call, None)
        branch.is_busy = False
        self._advance(branch)

    async def _run_call(self, branch: _Branch, op: Generate | Select) -> None:
        """Run a call to its one outcome; only a cancel is left to ``_ended``."""
        limit = self._served.settings.timeout_s
        if op.deadline_s is not None:
            limit = min(limit, op.deadline_s)
        try:
            async with asyncio.timeout(limit):
                if isinstance(op, Generate):
                    await self._generate(branch, op)
                else:
                    await self._select(branch, op)
            branch.has_failed = False
        except TimeoutError:
            self._fail(op.call, CallFailed(f"no answer within {limit:g} s"), "deadline")
        except CallFailed as error:
            self._fail(op.call, error)
        except InvalidArgument as error:
            self._fail(op.call, CallFailed(str(error)), "bad_request")
        except Exception as error:
            self._fail(op.call, CallFailed(f"the call failed: {error!r}"), "engine_fault")

    async def _generate(self, branch: _Branch, op: Generate) -> None:
        stream = self._streams[op.call] = _Stream(op.credit)

        def emit(index: int, piece: Piece) -> None:
            waiting = stream.pending.setdefault(index, Piece())
            waiting.text += piece.text
            waiting.logprobs += piece.logprobs
            waiting.top_logprobs += piece.top_logprobs
            self._send_chunks(op.call, stream)

        start = op.sampling.logprob_start_len
        before: tuple[TokenLogprob, ...] = ()
        if start >= 0 and op.sampling.return_logprob:
            scorer = Scorer(self._http, self._served, branch.salt)
            before = await scorer.prompt_logprobs(branch.prompt, start)
        found = await generate(self._http, self._served, branch.prompt, op, branch.salt, emit)
        branch.prompt = found.prompt
        self.usage = added(self.usage, found.usage)
        stream.credit += len(stream.pending)  # the last piece of a text needs no credit
        self._send_chunks(op.call, stream)
        self._put(Finished(op.call, found.outputs, found.usage, before))

    async def _select(self, branch: _Branch, op: Select) -> None:
        chosen, branch.prompt = await self._selector.choose(branch.prompt, op, branch.salt)
        self.usage = added(self.usage, chosen.usage)
        self._put(chosen)

    def _send_chunks(self, call: int, stream: _Stream) -> None:
        for index in list(stream.pending):
            if stream.credit <= 0:
                return
            stream.credit -= 1
            piece = stream.pending.pop(index)
            chunk = Chunk(call, index, piece.text, (), piece.logprobs, piece.top_logprobs)
            self._put(chunk)

    def _fail(self, call: int, error: CallFailed, code: str = "") -> None:
        self._put(Failed(call, code or error.code, str(error), error.retryable))
