"""A small deterministic runtime for tests of the language: no model, no threads, no clock.

It answers on the thread that sends. ``answer`` gives the text of a generation from the branch's
text (or raises a ``CallFailed``), ``choose`` the index of a selection. While ``is_holding``, calls
wait in ``held`` until ``release``. A token is a character.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from radixrt.errors import CallFailed
from radixrt.protocol import (
    Append,
    Cancel,
    Chosen,
    Chunk,
    Close,
    Constraint,
    Credit,
    Explain,
    Failed,
    Finished,
    FinishReason,
    Flush,
    Generate,
    Goodbye,
    Hello,
    Limits,
    ModelInfo,
    Open,
    Output,
    Ping,
    Pong,
    Read,
    Reply,
    Select,
    Span,
    Stats,
    ToClient,
    TokenLogprob,
    ToRuntime,
    Usage,
    Welcome,
)
from radixrt.transport import LocalTransport

MODEL = ModelInfo("scripted", "None", 256, 4096, True)

Operation = Append | Generate | Select | Read | Close


@dataclass
class ScriptedBranch:
    spans: list[Span] = field(default_factory=list)
    failed: bool = False
    operations: deque[Operation | tuple[str, int]] = field(default_factory=deque)
    running: int | None = None
    """The call that runs; later operations wait for it."""

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)


class ScriptedRuntime:
    def __init__(
        self,
        *,
        max_calls: int = 1000,
        ping_interval_s: float = 60.0,
        max_frame_bytes: int = 1 << 20,
        answers_hello: bool = True,
    ) -> None:
        self.limits = Limits(max_frame_bytes, max_calls, 10_000, 4096, ping_interval_s)
        self.sends: list[list[ToRuntime]] = []
        """What was sent, one list a ``send``; the session's own messages left out."""
        self.branches: dict[int, ScriptedBranch] = {}
        self.held: dict[int, Generate | Select] = {}
        self.cancelled: list[int] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.is_holding = False
        self.is_stuck = False
        self.refused_text: str | None = None
        self.accounts: list[dict[str, Any]] = []
        self.answer: Callable[[str, Generate], str] = lambda text, generate: f"<{len(text)}>"
        self.decorate: Callable[[Output, Generate], Output] = lambda output, generate: output
        """Adds to an output what a runtime with grammars knows of it."""
        self.choose: Callable[[str, tuple[Any, ...]], int] = lambda text, options: 0
        self.write_option: Callable[[Constraint], str] = lambda constraint: "?"
        """The text that a constraint among the options of a selection stands for."""
        self.changed = threading.Condition(threading.RLock())
        self.credits: dict[int, int] = {}
        self._answers_hello = answers_hello
        self.transport = LocalTransport(self._deliver)

    # ------------------------------------------------------------ what tests use

    @property
    def messages(self) -> list[ToRuntime]:
        return [message for send in self.sends for message in send]

    def sent(self, *kinds: type[Any]) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kinds)]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout=10.0)

    def release(self, call: int | None = None) -> None:
        """Answer one held call, or all, and what waits behind them."""
        with self.changed:
            for held in [call] if call is not None else list(self.held):
                self._finish(self.held.pop(held))

    def stop_holding(self) -> None:
        with self.changed:
            self.is_holding = False
            while self.held:
                self.release()

    def chunk(self, call: int, text: str) -> None:
        """Stream a piece of a held generation; its text is what was streamed."""
        with self.changed:
            assert self.credits[call] > 0, "a chunk without credit"
            self.credits[call] -= 1
            self.put(Chunk(call, 0, text, tuple(map(ord, text))))

    def put(self, *messages: ToClient) -> None:
        self.transport.put(messages)

    # ------------------------------------------------------------ the protocol

    def _deliver(self, messages: list[ToRuntime]) -> None:
        with self.changed:
            own = [m for m in messages if not isinstance(m, Hello | Ping | Goodbye)]
            if own:
                self.sends.append(own)
            for message in messages:
                self._handle(message)
            self.changed.notify_all()

    def _handle(self, message: ToRuntime) -> None:
        match message:
            case Hello():
                if self._answers_hello:
                    self.put(Welcome("first", self.limits, MODEL))
            case Ping():
                if not self.is_stuck:
                    self.put(Pong(message.seq, 0.0))
            case Open(parent=None):
                assert message.branch not in self.branches
                self.branches[message.branch] = ScriptedBranch()
            case Open():
                assert message.parent is not None
                parent = self.branches[message.parent]
                parent.operations.append(("fork", message.branch))
                self.branches[message.branch] = ScriptedBranch(running=-1)
                self._advance(parent)
            case Append() | Generate() | Select() | Read() | Close():
                if isinstance(message, Generate | Select):
                    self.in_flight += 1
                    self.max_in_flight = max(self.max_in_flight, self.in_flight)
                branch = self.branches.get(message.branch)
                if branch is None:
                    if not isinstance(message, Close | Append):
                        self.put(Failed(message.call, "bad_request", "no such branch"))
                    return
                branch.operations.append(message)
                self._advance(branch)
            case Cancel():
                self.cancelled.append(message.call)
                if (held := self.held.pop(message.call, None)) is not None:
                    self._fail(held, "cancelled", "as asked")
            case Credit():
                self.credits[message.call] += message.chunks
            case Explain():
                self.put(Reply(message.call, {"calls": self.accounts}))
            case Flush():
                self.put(Reply(message.call))
            case Stats():
                self.put(Reply(message.call, {"branches": len(self.branches)}))

    def _advance(self, branch: ScriptedBranch) -> None:
        while branch.operations and branch.running is None:
            operation = branch.operations.popleft()
            match operation:
                case Append():
                    self._append(branch, operation)
                case Generate() | Select():
                    branch.running = operation.call
                    self.credits[operation.call] = getattr(operation, "credit", 0)
                    if operation.call in self.cancelled:
                        self._fail(operation, "cancelled", "as asked")
                    elif self.is_holding:
                        self.held[operation.call] = operation
                    else:
                        self._finish(operation)
                case Read():
                    self.put(Reply(operation.call, spans=tuple(branch.spans)))
                case Close():
                    del self.branches[operation.branch]
                case (_, child_id):
                    child = self.branches.get(child_id)
                    if child is not None:
                        child.spans, child.failed = list(branch.spans), branch.failed
                        child.running = None
                        self._advance(child)

    def _append(self, branch: ScriptedBranch, append: Append) -> None:
        for part in append.parts:
            if part.text == self.refused_text:
                branch.failed = True
                self.put(Failed(None, "too_long", "refused text", branch=append.branch))
            text = {"role_begin": f"<|{part.text}|>", "role_end": "<|end|>"}.get(
                part.kind, part.text
            )
            kind = "text" if part.kind == "text" else "role"
            branch.spans.append(Span(kind, text, len(text), 0))

    def _finish(self, operation: Generate | Select) -> None:
        branch = self.branches[operation.branch]
        if branch.failed:
            self._fail(operation, "branch_failed", "an earlier operation failed")
            return
        try:
            if isinstance(operation, Generate):
                self._generated(branch, operation)
            else:
                self._selected(branch, operation)
        except CallFailed as error:
            branch.failed = True
            self._fail(operation, error.code, str(error))
            return
        self._ended(branch)

    def _fail(self, operation: Generate | Select, code: str, message: str) -> None:
        self.put(Failed(operation.call, code, message))
        if (branch := self.branches.get(operation.branch)) is not None:
            branch.failed = True
            self._ended(branch)

    def _ended(self, branch: ScriptedBranch) -> None:
        self.in_flight -= 1
        branch.running = None
        self._advance(branch)

    def _generated(self, branch: ScriptedBranch, generate: Generate) -> None:
        prompt = branch.text
        sampling = generate.sampling
        texts = [self.answer(prompt, generate) for _ in range(sampling.n)]
        plain = tuple(
            Output(
                text,
                tuple(map(ord, text)),
                FinishReason("stop", sampling.stop[0] if sampling.stop else None),
                _logprobs(text) if sampling.return_logprob else (),
                tuple(
                    (TokenLogprob(0.0, ord(char), char),) * sampling.top_logprobs_num
                    for char in text
                )
                if sampling.top_logprobs_num
                else (),
            )
            for text in texts
        )
        outputs = tuple(self.decorate(output, generate) for output in plain)
        branch.spans.append(Span("generated", texts[0], len(texts[0]), 0))
        usage = Usage(len(prompt), 0, len(prompt), 0, sum(map(len, texts)))
        start = sampling.logprob_start_len
        given = _logprobs(prompt[start:]) if start >= 0 else ()
        self.put(Finished(generate.call, outputs, usage, given))

    def _selected(self, branch: ScriptedBranch, select: Select) -> None:
        index = self.choose(branch.text, select.options)
        options = [
            self.write_option(option) if isinstance(option, Constraint) else option
            for option in select.options
        ]
        chosen = options[index]
        logprobs = tuple(
            tuple(
                TokenLogprob(0.0 if option == chosen else -1.0, ord(char), char) for char in option
            )
            for option in options
        )
        scores = tuple(0.0 if option == chosen else -1.0 for option in options)
        usage = Usage(len(branch.text), 0, len(branch.text), 0, len(chosen))
        branch.spans.append(Span("chosen", chosen, len(chosen), 0))
        unconditional = logprobs if select.method == "unconditional_likelihood" else ()
        self.put(Chosen(select.call, index, scores, logprobs, usage, unconditional, chosen))


def _logprobs(text: str) -> tuple[TokenLogprob, ...]:
    """The first token is certain: its log probability is exactly 0."""
    return tuple(
        TokenLogprob(0.0 if index == 0 else -0.5, ord(char), char)
        for index, char in enumerate(text)
    )


def interrupt_when(runtime: ScriptedRuntime, condition: Callable[[], bool]) -> threading.Thread:
    """Press Ctrl-C on the main thread once ``condition()`` holds."""

    def press() -> None:
        runtime.wait_for(condition)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread
