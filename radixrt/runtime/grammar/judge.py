"""The processes that compile constraints first: whatever a constraint does, it does it here.

    python -m radixrt.runtime.grammar.judge        (with a socket as standard input)

The first process reads the tokenizer and then only forks; its children judge one question after
another, each within a bound on memory and on the processor time of a question, and at a low
priority, a lower one when that time is long. One that is ended by a bound is replaced by another
fork, which takes milliseconds.

Messages on the first process' socket: its ``Settings``, answered by ``READY``; then ``SPAWN`` with
a socket for a new child, answered by its number; or ``END`` with the number of one, answered by how
it ended (as ``waitpid`` says it). It ends, with its children, when the socket is closed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import msgspec

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.compile import compile_grammar, validator_of
from radixrt.runtime.grammar.compiled import Validator
from radixrt.runtime.grammar.llguidance import LlguidanceEngine
from radixrt.runtime.grammar.verdicts import (
    END,
    NICENESS,
    QUICK_S,
    READY,
    SPAWN,
    Answer,
    Checked,
    Compile,
    Judged,
    Question,
    Refused,
    Settings,
    receive_frame,
    send_frame,
)

_LONG_NICENESS = 5
"""Of a child that is asked what may take longer than ``QUICK_S``, beyond the others'."""

_STACK_BYTES = 64 << 20


def main() -> None:
    """Be the first process, until its socket is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    # Whatever thread of the engine's has started this.
    its_niceness = os.getpriority(os.PRIO_PROCESS, os.getppid())
    os.setpriority(os.PRIO_PROCESS, 0, its_niceness + NICENESS)
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # children shall not keep the socket open
    os.close(nothing)
    data = receive_frame(control)
    if data is None:
        return
    settings = msgspec.msgpack.decode(data, type=Settings)
    engine = LlguidanceEngine(
        Path(settings.tokenizer_file), settings.vocab_size, settings.end_ids, 1
    )
    engine.vocabulary.build_look_ups()
    gc.freeze()  # children share the memory of what is there now
    send_frame(control, READY)
    children: set[int] = set()
    try:
        while True:
            command, handles = _receive(control)
            if command == SPAWN and handles:
                connection = socket.socket(fileno=handles[0])
                pid = os.fork()
                if pid == 0:
                    control.close()
                    _be_child(connection, engine, settings.memory)
                connection.close()
                children.add(pid)
                send_frame(control, pid.to_bytes(8, "little"))
            elif command.startswith(END):
                pid = int.from_bytes(command[len(END) :], "little")
                status = _end(pid) if pid in children else 0
                children.discard(pid)
                send_frame(control, status.to_bytes(8, "little"))
            else:
                return
    finally:
        for pid in children:
            _end(pid)


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """Return a command and what came with it; an empty one when the socket was closed."""
    # A handle comes with the first byte of its message.
    head, handles, _, _ = socket.recv_fds(control, 4, 1)
    while 0 < len(head) < 4:
        head += control.recv(4 - len(head))
    data = control.recv(int.from_bytes(head, "little")) if len(head) == 4 else b""
    return data, handles


def _end(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _be_child(connection: socket.socket, engine: LlguidanceEngine, memory: int) -> None:
    """Judge what comes, and never return."""
    code = 1
    try:
        limit = _address_space() + memory
        for what, most in (
            (resource.RLIMIT_AS, limit),
            (resource.RLIMIT_STACK, _STACK_BYTES),
            (resource.RLIMIT_CORE, 0),
        ):
            hard = resource.getrlimit(what)[1]
            if hard != resource.RLIM_INFINITY:
                most = min(most, hard)
            resource.setrlimit(what, (most, hard))
        _judge_all(connection, engine, _peak() + memory // 4)
        code = 0
    finally:
        os._exit(code)


def _judge_all(connection: socket.socket, engine: LlguidanceEngine, most: int) -> None:
    encode = msgspec.msgpack.encode
    decoder: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
    is_last = is_long = False
    while not is_last:
        data = receive_frame(connection)
        if data is None:
            return
        question = decoder.decode(data)
        if question.cpu_s > QUICK_S and not is_long:
            is_long = True
            os.nice(_LONG_NICENESS)
        # Past its time the kernel ends the process, in native code as well.
        signal.setitimer(signal.ITIMER_PROF, question.cpu_s)
        verdict = _judge(question, engine)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        is_last = _peak() > most
        send_frame(connection, encode(Answer(verdict, is_last)))


def _judge(question: Question, engine: LlguidanceEngine) -> Judged | Checked | Refused:
    try:
        if isinstance(question, Compile):
            return _compile(question, engine)
        return Checked(_validator(question.kind, question.constraint).check(question.text))
    except GrammarError as error:
        return Refused(str(error))
    except RecursionError:
        return Refused("the constraint is nested too deeply")
    except MemoryError:
        return Refused("the constraint takes more memory than it may have")
    except Exception as error:
        return Refused(f"the constraint cannot be used: {error!r}")


def _compile(question: Compile, engine: LlguidanceEngine) -> Judged:
    compiled, _ = compile_grammar(engine, question.spec)
    return Judged(
        compiled.grammar,
        compiled.is_json,
        compiled.is_enforced,
        compiled.keywords,
        compiled.warnings,
        compiled.limits,
        compiled.shortest,
        compiled.opening,
        compiled.outlook,
    )


@functools.lru_cache(maxsize=16)
def _validator(kind: str, constraint: str) -> Validator:
    validator = validator_of(kind, constraint)
    assert validator is not None, "a constraint of this kind is not checked"
    return validator


def _address_space() -> int:
    """Return the bytes of address space in use; 0 where that cannot be known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _peak() -> int:
    """Return the most memory that the process has used, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    main()
