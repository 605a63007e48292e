"""The frontend's side of ``Inspect``: whose requests they are, what ended, and texts."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from radixrt.cache.explain import Explained
from radixrt.protocol import Inspect
from radixrt.runtime.frontend.calls import Call, SelectCall
from radixrt.runtime.frontend.sessions import Session
from radixrt.runtime.tokenizer import Tokenizer
from radixrt.runtime.wire import PRIVATE, EngineUsage, InspectTree

MAX_ENDED = 64
"""Requests that ended which are told."""

MAX_TEXTS = 8192
"""Decoded beginnings of runs that are remembered."""

MAX_CLIENTS = 64
"""Clients that are told."""


class Watched:
    """Completes the engine's answers to ``Inspect``; ``radixrt.inspection`` describes them.

    ``note`` costs a few microseconds a call; everything else happens when somebody asks.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ended: deque[dict[str, Any]] = deque(maxlen=MAX_ENDED)
        self._num_ended = 0
        self._texts: OrderedDict[bytes, str] = OrderedDict()

    def note(self, call: Call, explained: Explained | None, usage: EngineUsage) -> None:
        """One output of a call has ended."""
        if explained is None:
            return
        computed = min(usage.computed, sum(miss.end - miss.start for miss in explained.misses))
        self._num_ended += 1
        ended = {
            "seq": self._num_ended,
            "op": "select" if isinstance(call, SelectCall) else "generate",
            "prompt": explained.prompt,
            "device": explained.device,
            "host": explained.host,
            "disk": explained.stores,
            "coalesced": explained.coalesced,
            "computed": computed,
            "generated": usage.completion - usage.forced,
            "forced": usage.forced,
            **_whose(call),
        }
        self._ended.append(ended)

    def question(self, run_id: int, op: Inspect) -> InspectTree:
        """Return what to ask the engine."""
        return InspectTree(run_id, op.since, op.max_nodes, op.texts, op.node)

    def answer(
        self,
        op: Inspect,
        data: Mapping[str, Any],
        whose: Callable[[int], Call | None],
        sessions: Iterable[Session],
        epoch: str,
        model: str,
    ) -> dict[str, Any]:
        """Return the data of the ``Reply``. ``whose``: the call that an engine's one is for."""
        if op.node:
            return self._path(op, data)
        engine = data["totals"]
        sources = engine["prompt_tokens_by_source"]
        for request in data["requests"]:
            call = whose(request["id"])
            if call is not None:
                request |= _whose(call)
        connected = list(sessions)
        return {
            **data,
            "epoch": epoch,
            "model": model,
            "nodes": self._named(data["nodes"], texts=op.texts),
            "ended": list(self._ended),
            "clients": [
                {"name": s.name, "branches": len(s.branches), "calls": len(s.calls)}
                for s in connected[:MAX_CLIENTS]
            ],
            "num_clients": len(connected),
            "totals": {
                "device": sources["device"],
                "host": sources["host"],
                "disk": sources["stores"],
                "coalesced": sources["coalesced"],
                "computed": sources["computed"],
                "sampled": engine["generated_tokens"],
                "forced": engine["forced_tokens"],
                "calls": engine["calls"],
                "steps": engine["steps"],
                "forward": engine["forward_tokens"],
                "evicted_pages": engine["evicted_pages"],
            },
        }

    def _path(self, op: Inspect, data: Mapping[str, Any]) -> dict[str, Any]:
        if data["path"] is None:
            return {"path": None}
        namespace = str(data["namespace"])
        shows = op.texts and not namespace.startswith(PRIVATE)
        return {
            "namespace": namespace,
            "path": [
                {
                    "id": node_id,
                    "tokens": len(key) // 4,
                    "text": self._decode(key) if shows else None,
                }
                for node_id, key in data["path"]
            ],
        }

    def _named(self, nodes: list[dict[str, Any]], *, texts: bool) -> list[dict[str, Any]]:
        """Put texts in the place of tokens."""
        for node in nodes:
            head = node.pop("head", None)
            if texts and head:
                node["text"] = self._text(head)
        return nodes

    def _text(self, head: bytes) -> str:
        text = self._texts.get(head)
        if text is None:
            text = self._texts[head] = self._decode(head)
            if len(self._texts) > MAX_TEXTS:
                self._texts.popitem(last=False)
        return text

    def _decode(self, key: bytes) -> str:
        token_ids = np.frombuffer(key, ">u4").tolist()
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


def _whose(call: Call) -> dict[str, Any]:
    branch = call.branch
    return {
        "client": call.session.name,
        "branch": branch.id if branch is not None else 0,
        "call": call.id,
    }
