"""What became of the prompts of the latest calls, told in text."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any

from radixrt.cache.explain import CONTEXT_TOKENS, Explained, Miss
from radixrt.runtime.frontend.calls import Call, GenerateCall, SelectCall
from radixrt.runtime.tokenizer import Tokenizer
from radixrt.runtime.wire import EngineUsage

MAX_RECENT = 256
"""Accounts that are kept for those who ask about no branch of theirs."""

MAX_RUNS = 8192
"""Engine calls whose client is remembered, to say for whom something was evicted."""


class Accounts:
    """Turns the engine's accounts into what ``Explain`` is answered with.

    An account is a dict: ``op`` ("generate" or "select"), ``call``, ``output``, ``prompt_tokens``,
    ``outcomes`` (tokens by device, host, disk, coalesced, computed, unreached: they sum to the
    prompt) and ``misses``: dicts of ``start``, ``end``, ``cause`` and what belongs to the cause.
    The misses make up all tokens that no tier served.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._recent: deque[tuple[str, dict[str, Any]]] = deque(maxlen=MAX_RECENT)
        self._runs: OrderedDict[int, tuple[bytes, int]] = OrderedDict()

    def began(self, run_id: int, call: Call) -> None:
        """The engine's call ``run_id`` works for ``call``."""
        self._runs[run_id] = call.session.client_id, call.id
        if len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)

    def note(
        self, call: Call, output: int, explained: Explained | None, usage: EngineUsage
    ) -> None:
        """Keep the account of one output of a call."""
        branch = call.branch
        if explained is None or branch is None or call.prompt is None:
            return
        unserved = sum(miss.end - miss.start for miss in explained.misses)
        computed = min(usage.computed, unserved)
        account = {
            "op": _op_of(call),
            "call": call.id,
            "output": output,
            "prompt_tokens": explained.prompt,
            "outcomes": {
                "device": explained.device,
                "host": explained.host,
                "disk": explained.stores,
                "coalesced": explained.coalesced,
                "computed": computed,
                "unreached": unserved - computed,
            },
            "misses": [self._told(call, miss) for miss in explained.misses],
        }
        branch.accounts.append(account)
        self._recent.append((branch.salt, account))

    def recent(self, num: int) -> list[dict[str, Any]]:
        """Return the latest accounts of calls in the cache that everybody shares, oldest first."""
        shared = [account for salt, account in self._recent if not salt]
        return shared[-num:] if num > 0 else []

    def _told(self, call: Call, miss: Miss) -> dict[str, Any]:
        told: dict[str, Any] = {"start": miss.start, "end": miss.end, "cause": miss.cause}
        match miss.cause:
            case "evicted":
                told |= {"tier": miss.tier, "ago_s": round(miss.ago_s, 3)}
                told["for"] = self._whom(call, miss.whom)
            case "namespace":
                told["field"] = miss.field
            case "not_worth":
                told["predicted_ms"] = round(miss.predicted_ms, 3)
            case "diverged":
                assert call.prompt is not None
                ids = call.prompt.flat()
                at = miss.start
                before = ids[max(0, at - CONTEXT_TOKENS) : at].tolist()
                told |= {
                    "before": self._text(before),
                    "ours": self._text(ids[at : at + CONTEXT_TOKENS].tolist()),
                    "theirs": self._text(miss.theirs),
                }
        return told

    def _whom(self, call: Call, run_id: int) -> str:
        if run_id == 0:
            return "a flush"
        client_id, other = self._runs.get(run_id, (b"", 0))
        if client_id == call.session.client_id:
            return f"call {other}"
        return "a call of another client" if client_id else f"request {run_id}"

    def _text(self, token_ids: Iterable[int]) -> str:
        return self._tokenizer.decode(list(token_ids))


def _op_of(call: Call) -> str:
    match call:
        case GenerateCall():
            return "generate"
        case SelectCall():
            return "select"
    raise AssertionError(call)
