"""What a client does with branches and calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from radixrt.protocol.values import Constraint, Part, Sampling

CacheUse = Literal["shared", "private", "off"]


@dataclass(frozen=True, slots=True)
class Open:
    """Create a branch: empty, or an O(1) copy of ``parent`` as of this point of its operations.

    ``tenant`` names a cache of its own: nobody else's prefixes are found there, and nobody else
    finds these. ``cache`` is ``shared`` (with everybody, or everybody of the tenant), ``private``
    (with the branches forked from this one) or ``off`` (nothing is found and nothing is kept). A
    copy has its parent's.
    """

    branch: int
    parent: int | None = None
    tenant: str = ""
    cache: CacheUse = "shared"


@dataclass(frozen=True, slots=True)
class Append:
    """Append parts to a branch."""

    branch: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Generate:
    """Generate on a branch and append the result to it (of ``n`` results the first).

    ``stream`` sends ``Chunk`` messages while credit lasts (``credit`` chunks at first, more by
    ``Credit``; text that had no credit is merged into the next chunk). ``deadline_s`` bounds the
    call from its arrival; None means the runtime's own bound. ``pause_s`` is how long the client
    expects the branch to be idle afterwards, None when it does not know: a hint for the cache.

    ``heal`` lets the first token span the end of the prompt: the prompt's last token is taken back
    and its text is generated again as the beginning of a token that may be longer. ``trace`` asks
    for ``Output.trace``. The text of a schema that is checked rather than enforced is streamed when
    it is known to be valid, in one chunk.
    """

    call: int
    branch: int
    sampling: Sampling = field(default_factory=Sampling)
    constraint: Constraint | None = None
    stream: bool = False
    credit: int = 1_000_000
    deadline_s: float | None = None
    pause_s: float | None = None
    heal: bool = False
    trace: bool = False


Method = Literal["token_length_normalized", "greedy_token_selection", "unconditional_likelihood"]


@dataclass(frozen=True, slots=True)
class Select:
    """Choose one of ``options`` by likelihood and append it to the branch. ``pause_s`` as of
    ``Generate``.

    An option that is a constraint stands for the most likely text under it (greedy, at most
    ``max_tokens``); all options are then scored together.
    """

    call: int
    branch: int
    options: tuple[str | Constraint, ...]
    method: Method = "token_length_normalized"
    deadline_s: float | None = None
    pause_s: float | None = None
    max_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Close:
    """Release a branch after the operations sent before; its cached tokens are evicted first, or
    with ``keep`` when their time comes."""

    branch: int
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep what a branch has cached, after the operations sent before, for ``ttl_s`` seconds of
    disuse before that of others, the higher ``priority`` (0 to 3) the longer. A wish: it never
    keeps others from running. ``ttl_s`` 0 takes the wish back."""

    branch: int
    ttl_s: float
    priority: int = 1


@dataclass(frozen=True, slots=True)
class Release:
    """What the branch alone has cached, after the operations sent before, may be evicted first. The
    branch stays open; going on with it computes again what is gone."""

    branch: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a call early. The call still ends in one message: ``Failed(cancelled)`` or its result."""

    call: int


@dataclass(frozen=True, slots=True)
class Credit:
    """Allow ``chunks`` more ``Chunk`` messages of a streamed call."""

    call: int
    chunks: int
