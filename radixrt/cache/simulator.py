"""The cache without a model: how many prompt tokens of a trace it would have served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from radixrt.cache.classic import FrequencyOrder, GreedyDualOrder, OracleOrder
from radixrt.cache.eviction import Policy, RecencyOrder
from radixrt.cache.history import PageHistory
from radixrt.cache.learned import learned_policy
from radixrt.cache.lease import Lease
from radixrt.cache.pages import Int32, PageAllocator
from radixrt.cache.radix import RadixCache
from radixrt.cache.trace import BLOCK_TOKENS, TraceRequest
from radixrt.errors import InvalidArgument

POLICIES = ("lru", "lfu", "lfu-history", "gdsf", "learned", "signals", "optimum")
"""What can be simulated. ``lfu`` counts uses while a page is cached, ``lfu-history`` also those
before; ``learned`` is the runtime's policy, ``signals`` the same with what programs tell;
``optimum`` is Belady's, which knows the future."""

CLASSIC = ("lru", "lfu", "lfu-history", "gdsf")
"""Policies that know nothing but the requests so far."""

_FORGETFUL = 16


@dataclass(frozen=True, slots=True)
class Simulated:
    """What became of a trace's prompt tokens. ``num_refused`` requests did not fit at all."""

    policy: str
    capacity_tokens: int
    num_tokens: int
    hit_tokens: int
    num_refused: int
    num_evicted: int

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that were cached."""
        return self.hit_tokens / max(self.num_tokens, 1)


def simulate(
    trace: Sequence[TraceRequest],
    policy: str,
    capacity_tokens: int,
    *,
    block_tokens: int = BLOCK_TOKENS,
) -> Simulated:
    """Run a trace through the cache of the runtime, with pages of one block.

    A request is there at once: it finds its prefix, takes pages for the rest, evicting with its
    prefix locked, and leaves all of it in the cache. One that is larger than the cache is computed
    without it. Raises ``InvalidArgument``.
    """
    num_pages = capacity_tokens // block_tokens
    if num_pages < 1:
        raise InvalidArgument("capacity", capacity_tokens, f"a block is {block_tokens} tokens")
    return _Simulation(trace, policy, num_pages, block_tokens).run(capacity_tokens)


class _Simulation:
    def __init__(
        self, trace: Sequence[TraceRequest], policy: str, num_pages: int, block_tokens: int
    ) -> None:
        self._trace = trace
        self._name = policy
        self._block_tokens = block_tokens
        self._now = 0.0
        self._oracle: OracleOrder | None = None
        self._has_signals = policy == "signals"
        self._allocator = PageAllocator(num_pages + 1)
        self._cache = RadixCache(
            self._allocator,
            1,
            clock=lambda: self._now,
            policy=self._policy(policy, num_pages, lambda: self._now),
        )
        self._idle: dict[int, Lease] = {}

    def _policy(self, name: str, num_pages: int, clock: Callable[[], float]) -> Policy:
        match name:
            case "lru":
                return Policy(RecencyOrder())
            case "lfu":
                return Policy(FrequencyOrder(), PageHistory(_FORGETFUL))
            case "lfu-history":
                return Policy(FrequencyOrder(), PageHistory(1 << 21))
            case "gdsf":
                return Policy(GreedyDualOrder().told(clock), PageHistory(_FORGETFUL))
            case "learned" | "signals":
                return learned_policy(num_pages, clock)
            case "optimum":
                self._oracle = OracleOrder()
                return Policy(self._oracle)
        raise InvalidArgument("policy", name, f"choose from {', '.join(POLICIES)}")

    def run(self, capacity_tokens: int) -> Simulated:
        next_uses = _next_uses(self._trace) if self._oracle is not None else None
        num_tokens = hit_tokens = num_refused = 0
        for index, request in enumerate(self._trace):
            self._now = request.time_s
            if not request.blocks:
                self._end(request)
                continue
            num_tokens += request.num_tokens
            if len(request.blocks) > self._allocator.num_usable:
                num_refused += 1
                continue
            if self._oracle is not None and next_uses is not None:
                self._oracle.next_use.update(zip(request.blocks, next_uses[index], strict=True))
            num_found = self._serve(request)
            hit_tokens += min(num_found * self._block_tokens, request.num_tokens)
        return Simulated(
            self._name,
            capacity_tokens,
            num_tokens,
            hit_tokens,
            num_refused,
            self._cache.counters.evicted_pages,
        )

    def _serve(self, request: TraceRequest) -> int:
        tokens: Int32 = np.array(request.blocks, np.int32)
        lease = self._cache.acquire("trace", tokens)
        num_found = len(lease.pages)
        lease.note_use()
        if num_found < len(tokens):
            pages = self._cache.take(len(tokens) - num_found)
            lease.extend(tokens, np.concatenate([lease.pages, pages]))
        if self._has_signals and request.program is not None:
            lease.park(0.0, pause_s=request.pause_s)
            before = self._idle.pop(request.program, None)
            if before is not None:
                before.release()
            self._idle[request.program] = lease
        else:
            lease.release()
        return num_found

    def _end(self, request: TraceRequest) -> None:
        if self._has_signals and request.program is not None:
            lease = self._idle.pop(request.program, None)
            if lease is not None:
                lease.release(ended=request.is_end)


def _next_uses(trace: Sequence[TraceRequest]) -> list[tuple[float, ...]]:
    """Return for every request when each of its blocks is asked for again (index; inf: never)."""
    coming: dict[int, float] = {}
    found: list[tuple[float, ...]] = []
    for index in range(len(trace) - 1, -1, -1):
        blocks = trace[index].blocks
        found.append(tuple(coming.get(block, float("inf")) for block in blocks))
        coming.update(dict.fromkeys(blocks, float(index)))
    return found[::-1]
