"""What the engine asks the processes that judge constraints, and what they answer."""

from __future__ import annotations

import socket

import msgspec

from radixrt.runtime.grammar.enforcement import Keyword
from radixrt.runtime.grammar.limits import CountLimit
from radixrt.runtime.grammar.validate import Failure
from radixrt.runtime.wire import GrammarSpec

READY, SPAWN, END = b"ready", b"spawn", b"end"
"""Messages of the first process; see ``judge.py``."""

QUICK_S = 0.05
"""Seconds of processor time that most constraints do with. Who needs more waits for others that do
(``workers.py``), at a lower priority."""

NICENESS = 5
"""Of all that works for constraints, beyond the engine's. Beside a busy thread of the engine's it
gets a quarter of what that gets, not less: who sends a constraint that is good waits for it."""

MAX_FRAME = 256 << 20
"""Bytes of one message, at most."""


class Settings(msgspec.Struct, frozen=True):
    """The tokenizer that constraints are compiled for; see ``LlguidanceEngine``."""

    tokenizer_file: str
    vocab_size: int
    end_ids: tuple[int, ...]
    memory: int
    """Bytes that one process may take beyond what it starts with."""


class Compile(msgspec.Struct, frozen=True, tag="compile"):
    """Compile a constraint within ``cpu_s`` seconds of processor time."""

    spec: GrammarSpec
    cpu_s: float


class Check(msgspec.Struct, frozen=True, tag="check"):
    """Validate a finished text under the constraint of that kind and text."""

    kind: str
    constraint: str
    text: str
    cpu_s: float


class Outlook(msgspec.Struct, frozen=True):
    """How texts under a schema can end: what ``completing.Completer`` is made of.

    ``schema`` is JSON; ``pattern_texts`` are strings under its patterns, as ``PatternTexts`` knows
    them; ``most_left`` is ``Completer.most_left``.
    """

    schema: str
    pattern_texts: dict[str, str]
    comma: str
    colon: str
    most_left: int


class Judged(msgspec.Struct, frozen=True, tag="judged"):
    """A constraint that could be compiled: what ``Compiled`` has of it that is data."""

    grammar: str
    is_json: bool
    is_enforced: bool
    keywords: tuple[Keyword, ...]
    warnings: tuple[str, ...]
    limits: tuple[CountLimit, ...]
    shortest: tuple[int, ...] | None
    opening: tuple[int, ...]
    outlook: Outlook | None


class Checked(msgspec.Struct, frozen=True, tag="checked"):
    """The result of a validation."""

    failure: Failure | None


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Why it could not be done."""

    message: str


class Answer(msgspec.Struct, frozen=True):
    """``is_last``: the process ends now, because it has grown."""

    verdict: Judged | Checked | Refused
    is_last: bool = False


Question = Compile | Check


def send_frame(connection: socket.socket, data: bytes) -> None:
    """Send one message; raises ``OSError``, or ``TimeoutError`` after the socket's time."""
    connection.sendall(len(data).to_bytes(4, "little") + data)


def receive_frame(connection: socket.socket) -> bytes | None:
    """Return the next message; None when the other side is gone. Raises as ``send_frame``."""
    head = _exactly(connection, 4)
    if head is None:
        return None
    size = int.from_bytes(head, "little")
    return _exactly(connection, size) if size <= MAX_FRAME else None


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)
