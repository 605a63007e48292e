"""The requests that wait to be computed: in which order, and who waits for whose prefix."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.scheduling.request import Request

Int32 = NDArray[np.int32]

LOOK_AHEAD = 64
"""Open requests that are asked whether they want a prefix that was just computed."""

Key = tuple[int, int, int]


class WaitingQueue:
    """Orders waiting requests: resumed ones first, then who was overtaken too often, then by
    longest cached prefix, then by most tokens asked for, then by age.

    What generates longest starts first: a long generation that starts last keeps the device nearly
    idle at the end (longest processing time first; Graham, 1969).

    ``overtake_limit`` bounds how many later arrivals may be admitted before a request; from then on
    it is served in order of age. A *held* request waits for another one to compute a prefix that
    both need and is not offered until ``let_go``.
    """

    def __init__(self, overtake_limit: int) -> None:
        self.overtake_limit = overtake_limit
        self.num_admitted = 0
        self._keys: list[Key] = []
        self._ages: list[int] = []
        self._open: dict[int, Request] = {}  # by seq
        self._held: dict[int, Request] = {}
        self._resumed: list[int] = []

    def __len__(self) -> int:
        return len(self._open) + len(self._held)

    def __iter__(self) -> Iterator[Request]:
        yield from self._open.values()
        yield from self._held.values()

    @property
    def num_open(self) -> int:
        """Requests that could be admitted now."""
        return len(self._open)

    def add(self, request: Request) -> None:
        """Put a request in; its ``match_hint`` says how much of it is cached."""
        if request.due_after < 0:
            request.due_after = self.num_admitted + len(self) + self.overtake_limit
        self._open[request.seq] = request
        insort(self._ages, request.seq)
        insort(self._keys, self._key(request))
        if request.num_retractions:
            insort(self._resumed, request.seq)

    def remove(self, request: Request) -> None:
        """Take a request out, held or not."""
        if self._held.pop(request.seq, None) is not None:
            assert request.provider is not None
            request.provider.followers = [
                (length, follower)
                for length, follower in request.provider.followers
                if follower is not request
            ]
            request.provider = None
            return
        self._close(request)

    def admitted(self, request: Request) -> None:
        """Take a request out because it runs now."""
        self._close(request)
        self.num_admitted += 1

    def hold(self, request: Request, provider: Request, length: int) -> None:
        """Keep a request back until ``provider`` has computed their common ``length`` tokens."""
        self._close(request)
        self._held[request.seq] = request
        request.provider = provider
        provider.followers.append((length, request))

    def let_go(self, provider: Request, num_tokens: int) -> None:
        """Offer again who waited for at most ``num_tokens`` tokens of ``provider``."""
        still = []
        for length, follower in provider.followers:
            if length > num_tokens:
                still.append((length, follower))
                continue
            del self._held[follower.seq]
            follower.provider = None
            follower.match_hint = max(follower.match_hint, length)
            self.add(follower)
        provider.followers = still

    def offers(self) -> Iterator[Request]:
        """Yield the open requests in the order in which they should be admitted.

        What is yielded may be taken out or held before the next one is asked for.
        """
        for seq in list(self._resumed):
            yield self._open[seq]
        offered: set[int] = set()
        position = 0
        while True:
            oldest = self._overtaken(offered)
            if oldest is not None:
                offered.add(oldest.seq)
                yield oldest
                continue
            if position >= len(self._keys):
                return
            key = self._keys[position]
            request = self._open[key[-1]]
            if request.seq in offered or request.num_retractions:
                position += 1
                continue
            offered.add(request.seq)
            yield request
            position = bisect_left(self._keys, key)
            if position < len(self._keys) and self._keys[position] == key:
                position += 1

    def wants(self, provider: Request, token_ids: Int32, start: int) -> bool:
        """Whether a held request, or one of the next open ones, continues ``token_ids[:start]`` as
        ``provider``, which has computed all of them, does."""
        if any(length > start for length, _ in provider.followers):
            return True
        for *_, seq in self._keys[:LOOK_AHEAD]:
            waiting = self._open[seq]
            if (
                waiting.logits_from > start
                and waiting.token_ids[start] == token_ids[start]
                and waiting.namespace == provider.namespace
                and bool((waiting.token_ids[:start] == token_ids[:start]).all())
            ):
                return True
        return False

    def is_due(self, request: Request) -> bool:
        """Whether nobody may be admitted before this request any more."""
        return bool(request.num_retractions) or self.num_admitted >= request.due_after

    def _overtaken(self, offered: set[int]) -> Request | None:
        for seq in self._ages:
            request = self._open[seq]
            if not self.is_due(request):
                return None
            if seq not in offered and not request.num_retractions:
                return request
        return None

    def _close(self, request: Request) -> None:
        del self._open[request.seq]
        del self._ages[bisect_left(self._ages, request.seq)]
        del self._keys[bisect_left(self._keys, self._key(request))]
        if request.num_retractions:
            self._resumed.remove(request.seq)

    @staticmethod
    def _key(request: Request) -> Key:
        return -request.match_hint, -request.sampling.max_tokens, request.seq
