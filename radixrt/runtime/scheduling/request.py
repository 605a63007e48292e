"""One sequence of tokens on its way through the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.explain import Explained
from radixrt.cache.movements import Fetch
from radixrt.cache.radix import Lease, Lookup
from radixrt.cache.tier_policy import Refusal
from radixrt.runtime.wire import EngineUsage, SampledLogprob, TokenSampling

if TYPE_CHECKING:
    from radixrt.runtime.grammar.session import Session
    from radixrt.runtime.scheduling.select import Selection

Int32 = NDArray[np.int32]
Reason = Literal["stop", "length", "abort", "deadline", "failed"]

GREEDY = TokenSampling(
    max_tokens=0,
    min_tokens=0,
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    frequency_penalty=0.0,
    presence_penalty=0.0,
    repetition_penalty=1.0,
    logit_bias=(),
    seed=0,
    stop_token_ids=(),
)
"""Sampling of a request that only scores."""


@dataclass(slots=True)
class Scoring:
    """Log probabilities wanted of known tokens.

    The logits at position ``start + i`` score the tokens ``targets[i]``; ``found[i]`` holds their
    logprobs and, of the first ``top_n`` tokens, ``tops[i]``. ``found`` grows as chunks complete.
    """

    start: int
    targets: list[tuple[int, ...]]
    top_n: int = 0
    found: list[list[float]] = field(default_factory=list)
    tops: list[tuple[tuple[int, ...], tuple[float, ...]]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Request:
    """Tokens to catch up with: it is computed while ``num_computed < num_tokens``.

    There is no prefill and no decode: a new prompt, a resumed request and the token sampled last
    are the same thing, tokens whose K and V are missing. While it runs (``slot >= 0``) its tokens
    and counts live in the ``SlotTable``; while it waits ``token_ids`` is all of it, and ``lookup``
    what is cached of it, once that was asked for.

    ``logits_from`` is the first position whose logits are still wanted, so a cached prefix is used
    up to there. ``seq`` is its age: lower is older, kept when it is retracted and resumed.

    Of ``cached`` prompt tokens ``loaded`` came from the host, and of these up to ``fetched`` had
    come there from a store for this request (``fetch`` while it waits). ``refusal`` says why tokens
    up to ``refused_end`` that a tier had were computed, ``predicted_s`` how long loading them would
    have taken. ``known_before`` tokens were cached when it first waited for another request to
    compute more; -1 if it never did.

    ``salt`` is the end of ``namespace`` that sets it apart from what everybody shares.
    ``is_cached`` False: nothing is reused. ``pause_s``: how long its branch is expected to be idle
    afterwards. ``family``: the branches forked together with its own.

    It came at ``arrived`` (monotonic seconds) and was first admitted ``waited_s`` later; -1: never.

    ``correction`` are tokens that replace all from a position on as soon as no step is in flight
    that computes with what was there.
    """

    id: int
    branch: int
    namespace: str
    token_ids: Int32
    prompt_len: int
    sampling: TokenSampling
    seq: int
    logits_from: int
    session: Session | None = None
    scoring: Scoring | None = None
    selection: Selection | None = None
    deadline: float | None = None

    stops: frozenset[int] = frozenset()
    has_extras: bool = False
    slot: int = -1
    lease: Lease | None = None
    reason: Reason | None = None
    matched: int | None = None
    failure: str = ""
    failure_code: str = "engine_fault"
    is_branch_ended: bool = False
    num_retractions: int = 0

    match_hint: int = 0
    lookup: Lookup | None = None
    due_after: int = -1
    provider: Request | None = None
    followers: list[tuple[int, Request]] = field(default_factory=list)

    cached: int = -1
    computed: int = 0
    evicted: int = 0
    loaded: int = 0
    fetched: int = 0
    fetch: Fetch | None = None
    num_fetches: int = 0
    refusal: Refusal = ""
    predicted_s: float = 0.0
    refused_end: int = 0
    known_before: int = -1
    explained: Explained | None = None
    completion: int = 0
    correction: tuple[int, list[int]] | None = None

    arrived: float = field(default_factory=time.monotonic)
    waited_s: float = -1.0

    salt: str = ""
    is_cached: bool = True
    pause_s: float | None = None
    family: int = 0

    def __post_init__(self) -> None:
        self.stops = frozenset(self.sampling.stop_token_ids)
        self.has_extras = self.session is not None or self.sampling.logprobs

    @property
    def samples(self) -> bool:
        """Whether tokens are generated after the known ones."""
        return self.sampling.max_tokens > 0

    @property
    def max_len(self) -> int:
        """Tokens it can have in the end; the last one of a generation is never computed."""
        return self.prompt_len + max(self.sampling.max_tokens, 1)

    @property
    def usage(self) -> EngineUsage:
        """Token counts so far."""
        return EngineUsage(
            prompt=self.prompt_len,
            cached=max(self.cached, 0),
            computed=self.computed,
            evicted=self.evicted,
            completion=self.completion,
            forced=self.session.written.num_forced if self.session is not None else 0,
        )

    @property
    def is_over(self) -> bool:
        """Whether it has ended or was marked to end; only ``commit`` frees what it holds."""
        return self.reason is not None


def prompt_logprobs(request: Request) -> tuple[SampledLogprob, ...]:
    """Return the entries asked for with ``prompt_logprobs_from``: one per prompt token from there,
    the first without a logprob when nothing is before it."""
    first = request.sampling.prompt_logprobs_from
    scoring = request.scoring
    if first < 0 or scoring is None:
        return ()
    entries = [SampledLogprob(None)] if first == 0 else []
    for index, found in enumerate(scoring.found):
        ids, logprobs = scoring.tops[index] if scoring.top_n else ((), ())
        if found:
            entries.append(SampledLogprob(found[0], ids, logprobs))
    return tuple(entries)
