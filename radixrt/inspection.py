"""What ``protocol.Inspect`` is answered with: the live tree, the requests, the tiers, as data.

The data of the ``Reply`` are the fields of ``Inspection`` (or of ``NodePath`` for a single node) as
JSON has them; ``read`` and ``read_path`` turn them into these classes.

A viewer keeps a picture: it asks with ``since=0``, then again and again with the ``generation`` of
its last answer, and is told what changed. Answers are bounded, so it asks again at once while
``is_more``. ``Picture`` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec

from radixrt.errors import ProtocolError

Tier = Literal["device", "host"]
Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNode:
    """A run of tokens that one node of the tree holds. Counts are tokens unless it says otherwise.

    ``id``          unique for the engine's lifetime; negative for what only the host has
    ``parent``      the id of the run that it continues; 0 for a root
    ``namespace``   of a root: what sets its cache apart, ``""`` for the one that everybody shares
    ``tokens``      length of the run; 0 for a root
    ``tier``        the fastest tier that has it
    ``host``, ``disk``   how many of its first tokens these tiers have as well, as far as looked at
    ``uses``        requests that used it, the one that computed it included, at most 255; 0: not
                    counted
    ``used``        when it was used last, on the clock of ``Inspection.now``; None: not itself,
                    what continues it was
    ``locked``      whether running requests use it
    ``leases``      idle branches whose tokens end here, and nodes below with such
    ``ended``       the programs that used it have ended
    ``kept_until``  until when a program asked to keep it
    ``children``    runs that continue it, also those that are not told
    ``text``        how its text begins; None where texts were not asked for or are private
    """

    id: int
    parent: int
    tokens: int
    tier: Tier
    namespace: str | None = None
    host: int = 0
    disk: int = 0
    uses: int = 0
    used: float | None = None
    locked: bool = False
    leases: int = 0
    ended: bool = False
    kept_until: float | None = None
    children: int = 0
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRequest:
    """A request that runs or waits. Its prompt came from ``device``, ``host`` and ``disk``, from
    others that computed it meanwhile (``coalesced``), and was ``computed``, so far; the rest is
    still to be computed. ``generated`` were sampled, ``forced`` by a constraint without sampling.

    ``client`` and ``branch`` say whose it is; ``id`` is the engine's.
    """

    id: int
    op: Literal["generate", "select"]
    state: Literal["waiting", "fetching", "computing", "generating"]
    prompt: int
    device: int
    host: int
    disk: int
    coalesced: int
    computed: int
    generated: int
    forced: int
    max_tokens: int
    retractions: int = 0
    client: str = ""
    branch: int = 0
    call: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRequest:
    """One of the latest requests that ended, as ``LiveRequest``; ``seq`` counts them all."""

    seq: int
    op: Literal["generate", "select"]
    prompt: int
    device: int
    host: int
    disk: int
    coalesced: int
    computed: int
    generated: int
    forced: int
    client: str = ""
    branch: int = 0
    call: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFill:
    """Tokens of one tier: what it has cached, how much of that running requests lock, what they
    compute in pages of their own, and what there is room for (0: unknown)."""

    name: str
    tokens: int
    locked: int
    running: int
    capacity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientActivity:
    """A connected client: its name, its open branches and its unanswered calls."""

    name: str
    branches: int
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Tokens since the runtime started, for rates: ask twice and divide by the difference of
    ``Inspection.now``. Prompt tokens by where they came from, of the calls that ended; ``sampled``
    and ``forced`` those generated; ``steps``, ``calls``, ``evicted_pages`` are counts."""

    device: int = 0
    host: int = 0
    disk: int = 0
    coalesced: int = 0
    computed: int = 0
    sampled: int = 0
    forced: int = 0
    calls: int = 0
    steps: int = 0
    forward: int = 0
    evicted_pages: int = 0

    @property
    def prompt(self) -> int:
        """Tokens of all prompts."""
        return self.device + self.host + self.disk + self.coalesced + self.computed

    @property
    def cached(self) -> int:
        """Of these, tokens that were not computed."""
        return self.prompt - self.computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """One answer. ``nodes`` changed since what was asked for, or are all that is told (``is_full``:
    forget what you had); those in ``gone`` have left the tree. ``now`` is seconds on a clock of the
    runtime's own; ``epoch`` changes when the runtime restarts."""

    epoch: str
    model: str
    now: float
    generation: int
    is_full: bool
    is_more: bool
    nodes: tuple[TreeNode, ...]
    gone: tuple[int, ...]
    requests: tuple[LiveRequest, ...]
    num_running: int
    num_waiting: int
    ended: tuple[EndedRequest, ...]
    tiers: tuple[TierFill, ...]
    clients: tuple[ClientActivity, ...]
    num_clients: int
    totals: Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRun:
    """One run of a path; ``id`` 0 where no node stands for it alone. ``text`` is None where it is
    private or texts were not asked for."""

    id: int
    tokens: int
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePath:
    """The way to a node, from the first token on; ``path`` None when the node has gone. Of very
    long ones the end."""

    namespace: str = ""
    path: tuple[PathRun, ...] | None = None


def read(data: Mapping[str, Any]) -> Inspection:
    """Return the inspection that a ``Reply`` holds; ``ProtocolError`` if it holds none."""
    return _converted(data, Inspection)


def read_path(data: Mapping[str, Any]) -> NodePath:
    """Return the path that a ``Reply`` to a question for one node holds; ``ProtocolError``."""
    return _converted(data, NodePath)


def _converted(data: Mapping[str, Any], kind: type[Kind]) -> Kind:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"answer to inspect: {error}") from None


@dataclass(slots=True)
class Picture:
    """The tree as a viewer knows it: ``nodes`` by id, every parent known.

    Changes add nodes beyond those of the first answer. With more than ``max_nodes`` of them
    ``generation`` becomes 0, so that the next answer is a whole picture again.
    """

    generation: int = 0
    max_nodes: int = 20_000
    nodes: dict[int, TreeNode] = field(default_factory=dict)

    def take(self, inspection: Inspection) -> None:
        """Bring the picture up to date with the next answer."""
        if inspection.is_full:
            self.nodes.clear()
        for gone in inspection.gone:
            self.nodes.pop(gone, None)
        for node in inspection.nodes:
            self.nodes[node.id] = node
        self.generation = inspection.generation
        if len(self.nodes) > self.max_nodes:
            self.generation = 0
