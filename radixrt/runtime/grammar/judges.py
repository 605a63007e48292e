"""Constraints are compiled in other processes first; see ``judge.py``."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec

from radixrt.runtime.grammar.base import GrammarError, GrammarTimeout
from radixrt.runtime.grammar.validate import Failure
from radixrt.runtime.grammar.verdicts import (
    END,
    QUICK_S,
    READY,
    SPAWN,
    Answer,
    Check,
    Checked,
    Compile,
    Judged,
    Question,
    Refused,
    Settings,
    receive_frame,
    send_frame,
)
from radixrt.runtime.wire import GrammarSpec

MEMORY = 1 << 30
"""Bytes that compiling one constraint may take."""

CHECK_S = 2.0
"""Seconds of processor time that validating one text may take."""

START_S = 60.0
"""Seconds that reading the tokenizer may take."""

_SPAWN_S = 10.0
_CLOSE_S = 0.5


def patience(cpu_s: float) -> float:
    """Return the seconds to wait for what may take ``cpu_s`` of a processor that others use too,
    and use first when it is long."""
    return (4 if cpu_s <= QUICK_S else 8) * cpu_s + 1.0


@dataclass(slots=True, eq=False)
class _Child:
    connection: socket.socket
    pid: int
    is_long: bool


class Judges:
    """Processes that compile and validate, as many as threads ask at once.

    Safe for use from several threads. What a constraint may take of memory and processor time is
    bounded by the kernel; whoever exceeds it fails alone, with a typed error.
    """

    def __init__(
        self,
        tokenizer_file: Path,
        vocab_size: int,
        end_ids: tuple[int, ...],
        *,
        memory: int = MEMORY,
    ) -> None:
        self._settings = Settings(str(tokenizer_file), vocab_size, end_ids, memory)
        self._lock = threading.Lock()
        self._children: list[_Child] = []
        self._idle: dict[bool, list[_Child]] = {False: [], True: []}
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._is_ready = False
        self._decoder = msgspec.msgpack.Decoder(Answer)
        self.num_ended = 0

    def start(self) -> None:
        """Start the first process, if it does not run; the tokenizer is read while the caller goes
        on. Raises ``GrammarError`` when that is not possible."""
        with self._lock:
            self._start()

    def compile(self, spec: GrammarSpec, cpu_s: float) -> Judged:
        """Return what became of a constraint. Raises ``GrammarError``, ``GrammarTimeout`` when it
        takes longer than ``cpu_s`` seconds of processor time."""
        verdict = self._ask(Compile(spec, cpu_s), "compiling the constraint")
        assert isinstance(verdict, Judged)
        return verdict

    def check(
        self, kind: str, constraint: str, text: str, cpu_s: float = CHECK_S
    ) -> Failure | None:
        """Validate a finished text; raises ``GrammarError`` when that cannot be done,
        ``GrammarTimeout`` when it takes longer than ``cpu_s`` seconds and may take longer."""
        try:
            verdict = self._ask(Check(kind, constraint, text, cpu_s), "the final validation")
        except GrammarTimeout as error:
            if cpu_s < CHECK_S:
                raise
            raise GrammarError(str(error)) from None
        assert isinstance(verdict, Checked)
        return verdict.failure

    def close(self) -> None:
        """End all processes; idempotent. Whoever waits for one gets an error."""
        with self._lock:
            for child in self._children:
                child.connection.close()
            self._children, self._idle = [], {False: [], True: []}
            self._stop()

    # ------------------------------------------------------------ one question

    def _ask(self, question: Question, what: str) -> Judged | Checked:
        child = self._child(question.cpu_s > QUICK_S)
        is_late, data = False, None
        try:
            child.connection.settimeout(patience(question.cpu_s))
            send_frame(child.connection, msgspec.msgpack.encode(question))
            data = receive_frame(child.connection)
        except TimeoutError:
            is_late = True
        except OSError:
            pass  # it has ended
        answer = None if data is None else self._decoder.decode(data)
        if answer is None or answer.is_last:
            status = self._end(child)
            is_late |= os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
        else:
            self._give_back(child)
        if answer is None:
            self.num_ended += 1
            if is_late:
                raise GrammarTimeout(
                    f"{what} takes over {question.cpu_s * 1000:.0f} ms; simplify it"
                )
            raise GrammarError(
                f"{what} ended the process that did it, which may take "
                f"{self._settings.memory >> 20} MiB; simplify it"
            )
        if isinstance(answer.verdict, Refused):
            raise GrammarError(answer.verdict.message)
        return answer.verdict

    # ------------------------------------------------------------ processes

    def _child(self, is_long: bool) -> _Child:
        """Return a process that nobody else asks; it is given back or ended afterwards. One that
        was asked something long has given up its priority, and is asked nothing else."""
        with self._lock:
            if self._idle[is_long]:
                return self._idle[is_long].pop()
            for is_last in (False, True):
                try:
                    child = self._spawn(is_long)
                    break
                except OSError as error:
                    self._stop()  # the first process has died: once more
                    if is_last:
                        raise GrammarError(f"no process can compile constraints: {error}") from None
            self._children.append(child)
            return child

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            if child in self._children:  # else all of them were closed meanwhile
                self._idle[child.is_long].append(child)

    def _spawn(self, is_long: bool) -> _Child:
        control = self._start()
        if not self._is_ready:
            control.settimeout(START_S)
            if receive_frame(control) != READY:
                raise OSError("it ended before it was ready")
            self._is_ready = True
        control.settimeout(_SPAWN_S)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                head = len(SPAWN).to_bytes(4, "little")
                socket.send_fds(control, [head + SPAWN], [theirs.fileno()])
                data = receive_frame(control)
            if data is None:
                raise OSError("it has ended")
        except OSError:
            ours.close()
            raise
        return _Child(ours, int.from_bytes(data, "little"), is_long)

    def _end(self, child: _Child) -> int:
        """End a process and return how it ended, as ``waitpid`` says it."""
        child.connection.close()
        with self._lock:
            if child not in self._children:
                return 0  # all of them were closed meanwhile
            self._children.remove(child)
            if self._control is None:
                return 0
            try:
                send_frame(self._control, END + child.pid.to_bytes(8, "little"))
                data = receive_frame(self._control)
            except OSError:
                return 0
        return 0 if data is None else int.from_bytes(data, "little")

    def _start(self) -> socket.socket:
        if self._control is not None:
            return self._control
        ours, theirs = socket.socketpair()
        # Its threads would not survive a fork, and it needs none.
        environment = {
            **os.environ,
            "TOKENIZERS_PARALLELISM": "false",
            "RAYON_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        try:
            with theirs:
                self._process = subprocess.Popen(
                    (sys.executable, "-m", "radixrt.runtime.grammar.judge"),
                    stdin=theirs.fileno(),
                    env=environment,
                    # Ctrl-C is for who asks, while it starts too. No session of its own: where
                    # Linux shares processors among sessions, niceness would not count.
                    process_group=0,
                )
            ours.settimeout(_SPAWN_S)
            send_frame(ours, msgspec.msgpack.encode(self._settings))
        except OSError as error:
            ours.close()
            raise GrammarError(f"no process can compile constraints: {error}") from None
        self._control = ours
        return ours

    def _stop(self) -> None:
        self._is_ready = False
        if self._control is not None:
            self._control.close()
            self._control = None
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_CLOSE_S)  # it ends its children
            if process.poll() is None:
                process.kill()  # they notice when they are done
                process.wait()


@dataclass(frozen=True, slots=True)
class JudgedValidator:
    """Validates texts in another process; see ``Validator``."""

    judges: Judges
    kind: str
    constraint: str

    def check(self, text: str, cpu_s: float = CHECK_S) -> Failure | None:
        """Return what is wrong with a text; raises as ``Judges.check`` does."""
        return self.judges.check(self.kind, self.constraint, text, cpu_s)
