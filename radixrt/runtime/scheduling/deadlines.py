"""Which requests run out of time."""

from __future__ import annotations

import heapq

from radixrt.runtime.scheduling.request import Request


class Deadlines:
    """Requests by deadline. One that ended is forgotten at once; its entry in the heap is a pair of
    numbers and goes when it comes up, or when such entries are the most."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def num_entries(self) -> int:
        """Entries of the heap, of ended requests too."""
        return len(self._heap)

    def add(self, request: Request) -> None:
        """Watch a request, if it has a deadline."""
        if request.deadline is not None:
            self._requests[request.seq] = request
            heapq.heappush(self._heap, (request.deadline, request.seq))

    def discard(self, request: Request) -> None:
        """Forget a request that ended."""
        if self._requests.pop(request.seq, None) is None:
            return
        if len(self._heap) > 2 * len(self._requests) + 64:
            self._heap = [entry for entry in self._heap if entry[1] in self._requests]
            heapq.heapify(self._heap)

    def expired(self, now: float) -> list[Request]:
        """Return the requests whose deadline has come, and forget them."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            request = self._requests.pop(heapq.heappop(self._heap)[1], None)
            if request is not None:
                found.append(request)
        return found
