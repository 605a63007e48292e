"""The engine's side of ``Inspect``: the tree, the running requests and the tiers, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from radixrt.cache.view import TreeView
from radixrt.runtime.scheduling.request import Request
from radixrt.runtime.scheduling.scheduler import Scheduler
from radixrt.runtime.wire import PRIVATE, InspectTree

MAX_NODES = 10_000
"""Nodes of one answer at most, whoever asks."""

MAX_REQUESTS = 256
"""Requests of one answer at most; those that run come first."""


class Inspector:
    """Answers what ``InspectTree`` asks; ``radixrt.inspection`` says what the data hold.

    Owned by the engine's thread. Nothing is watched before the first question.
    """

    def __init__(self, scheduler: Scheduler, namespace: str) -> None:
        """``namespace``: what the namespaces of all requests begin with."""
        self._scheduler = scheduler
        self._namespace = namespace
        self._view: TreeView | None = None
        self._has_tiers = False

    def answer(self, question: InspectTree) -> dict[str, Any]:
        """Return the data of the answer."""
        view = self._current_view()
        if question.node:
            found = view.path(question.node)
            if found is None:
                return {"path": None}
            return {"namespace": self._salt_of(found[0]), "path": found[1]}
        max_nodes = min(max(question.max_nodes, 1), MAX_NODES)
        scheduler = self._scheduler
        seen = view.look(question.since, max_nodes, heads=question.heads)
        for node in seen["nodes"]:
            if "namespace" in node:
                node["namespace"] = self._salt_of(node["namespace"])
        evicted = scheduler.kv.cache.counters.evicted_pages
        return {
            **seen,
            "now": scheduler.kv.cache.now(),
            "requests": list(self._requests()),
            "num_running": len(scheduler.slots.active),
            "num_waiting": len(scheduler.queue) + scheduler.num_fetching,
            "tiers": self._tiers(),
            "totals": scheduler.metrics.snapshot() | {"evicted_pages": evicted},
        }

    def _current_view(self) -> TreeView:
        kv = self._scheduler.kv
        has_tiers = kv.tiers is not None
        if self._view is None or has_tiers != self._has_tiers:
            if self._view is not None:
                self._view.stop()
            self._view = TreeView(kv.cache.tree, kv.tiers, kv.cache.now, self._shows)
            self._has_tiers = has_tiers
        return self._view

    def _salt_of(self, namespace: str) -> str:
        return namespace.removeprefix(self._namespace)

    def _shows(self, namespace: str) -> bool:
        return not self._salt_of(namespace).startswith(PRIVATE)

    def _requests(self) -> Iterator[dict[str, Any]]:
        """Yield a record of each call that the scheduler works for, the oldest running first."""
        slots, scheduler = self._scheduler.slots, self._scheduler
        seen: set[int] = set()
        running = (slots.requests[slot] for slot in slots.active.tolist())
        for request in chain(running, scheduler.waiting()):
            if len(seen) == MAX_REQUESTS:
                return
            if request is None or request.is_over:
                continue
            if request.id not in seen:
                seen.add(request.id)
                yield self._record(request)

    def _record(self, request: Request) -> dict[str, Any]:
        selection = request.selection
        usage = request.usage if selection is None else selection.usage
        explained = request.explained if selection is None else selection.explained
        state = "waiting"
        if request.fetch is not None:
            state = "fetching"
        elif request.slot >= 0:
            slots, slot = self._scheduler.slots, request.slot
            is_caught_up = slots.num_committed[slot] >= slots.num_known[slot]
            state = "generating" if is_caught_up and request.samples else "computing"
        return {
            "id": request.id,
            "op": "generate" if selection is None else "select",
            "state": state,
            "prompt": usage.prompt,
            "device": explained.device if explained is not None else 0,
            "host": explained.host if explained is not None else 0,
            "disk": explained.stores if explained is not None else 0,
            "coalesced": explained.coalesced if explained is not None else 0,
            "computed": usage.computed,
            "generated": usage.completion - usage.forced,
            "forced": usage.forced,
            "max_tokens": request.sampling.max_tokens,
            "retractions": request.num_retractions,
        }

    def _tiers(self) -> list[dict[str, Any]]:
        kv = self._scheduler.kv
        size = kv.page_size
        tiers: list[dict[str, Any]] = [
            {
                "name": "device",
                "tokens": kv.cache.num_cached * size,
                "locked": kv.cache.num_locked * size,
                "running": kv.num_private() * size,
                "capacity": kv.num_usable * size,
            }
        ]
        if kv.tiers is not None:
            for tier in (kv.tiers.host, *kv.tiers.stores):
                stats = tier.stats()
                tiers.append(
                    {
                        "name": tier.name,
                        "tokens": stats.ready * size,
                        "locked": 0,
                        "running": 0,
                        "capacity": stats.capacity * size,
                    }
                )
        return tiers
