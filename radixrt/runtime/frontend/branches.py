"""Branches: the token state of programs.

A branch is a chain of immutable segments, each with the text it stands for. A fork copies the
reference to the last segment: O(1), token-exact, and what both go on with is their own.

    text ── role ── generated ──┬── text ── generated      (branch 1)
                                └── text ── chosen         (branch 2, forked)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from radixrt.protocol import Append, Close, Hold, Release, Span
from radixrt.runtime.frontend.chat import Turns

if TYPE_CHECKING:
    from radixrt.runtime.frontend.calls import Call
    from radixrt.runtime.frontend.sessions import Session

TokenIds = NDArray[np.int32]

MAX_OF_BRANCH = 64
"""Accounts of calls that a branch keeps."""

Kind = Literal["text", "role", "generated", "chosen"]


class Segment:
    """A run of tokens after its ``parent``. Immutable but for what was learned of the cache.

    ``text`` may be given as a function: few read what given tokens spell, and it is not free.
    """

    __slots__ = (
        "_flat",
        "_text",
        "cached_tokens",
        "end",
        "is_shared",
        "kind",
        "parent",
        "token_ids",
    )

    def __init__(
        self, parent: Segment | None, kind: Kind, text: str | Callable[[], str], token_ids: TokenIds
    ) -> None:
        self.parent = parent
        self.kind = kind
        self._text = text
        self.token_ids = token_ids
        self.end: int = len(token_ids) + (parent.end if parent is not None else 0)
        self.cached_tokens = -1  # until a run over this segment says
        self.is_shared = False  # a fork begins here, so its flat ids are worth keeping
        self._flat: TokenIds | None = None

    @property
    def text(self) -> str:
        """What it stands for."""
        if not isinstance(self._text, str):
            self._text = self._text()
        return self._text

    def flat(self) -> TokenIds:
        """Return all token ids up to the end of this segment (int32, read-only)."""
        if self._flat is None:
            pieces: list[TokenIds] = []
            segment: Segment | None = self
            while segment is not None and segment._flat is None:
                pieces.append(segment.token_ids)
                segment = segment.parent
            if segment is not None and segment._flat is not None:
                pieces.append(segment._flat)
                if not segment.is_shared:
                    segment._flat = None
            self._flat = np.concatenate(pieces[::-1])
            self._flat.flags.writeable = False
        return self._flat

    def chain(self) -> Iterator[Segment]:
        """Yield the segments from this one back to the first."""
        segment: Segment | None = self
        while segment is not None:
            yield segment
            segment = segment.parent

    def note_cached(self, cached_tokens: int) -> None:
        """The first ``cached_tokens`` up to here came from the cache: tell segments new to that."""
        for segment in self.chain():
            if segment.cached_tokens >= 0:
                return
            num_tokens = len(segment.token_ids)
            segment.cached_tokens = min(
                max(cached_tokens - segment.end + num_tokens, 0), num_tokens
            )

    def spans(self) -> tuple[Span, ...]:
        """Return the rendered spans from the first segment to this one."""
        return tuple(
            Span(s.kind, s.text, len(s.token_ids), max(s.cached_tokens, 0))
            for s in reversed(list(self.chain()))
        )


@dataclass(frozen=True, slots=True)
class Fork:
    """Let ``child`` begin as a copy of the branch as it is at this operation."""

    child: Branch


@dataclass(frozen=True, slots=True)
class Refused:
    """An operation that was refused when it arrived; the branch fails when its turn comes."""

    message: str


@dataclass(slots=True, eq=False)
class Branch:
    """A client's branch and the operations it still has to do.

    ``uid`` names its lease in the engine. ``pending_text`` was appended and is not tokenized yet.
    Operations wait while ``call`` runs or ``is_waiting`` for the parent to reach the fork.

    ``salt`` sets its cache apart from everybody's, ``is_cached`` is False for a branch that uses
    none; ``family`` is common to the copies of one parent. ``accounts`` say what became of the
    prompts of its latest calls.
    """

    session: Session
    id: int
    uid: int
    is_waiting: bool = False
    is_closing: bool = False
    head: Segment | None = None
    turns: Turns = field(default_factory=Turns)
    pending_text: list[str] = field(default_factory=list)
    ops: deque[Append | Fork | Refused | Hold | Release | Close | Call] = field(
        default_factory=deque
    )
    call: Call | None = None
    failure: str | None = None
    was_run: bool = False
    salt: str = ""
    is_cached: bool = True
    family: int = 0
    accounts: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_OF_BRANCH))

    @property
    def num_tokens(self) -> int:
        """Tokens it has, without text that is not tokenized yet."""
        return 0 if self.head is None else self.head.end

    @property
    def is_runnable(self) -> bool:
        return bool(self.ops) and self.call is None and not self.is_waiting

    def append(self, kind: Kind, text: str | Callable[[], str], token_ids: TokenIds) -> None:
        """Append tokens."""
        if len(token_ids) or text:
            self.head = Segment(self.head, kind, text, token_ids)

    def become_copy_of(self, parent: Branch) -> None:
        """Take over the state of ``parent``, whose text is tokenized."""
        if parent.head is not None:
            parent.head.is_shared = True
        self.head = parent.head
        self.turns = parent.turns
        self.failure = parent.failure
        self.salt, self.is_cached = parent.salt, parent.is_cached
        self.family = parent.uid
        self.is_waiting = False
