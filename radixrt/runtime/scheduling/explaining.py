"""The account of an admitted request's prompt: which tier served what, and why the rest missed."""

from __future__ import annotations

from radixrt.cache.explain import Cause, Explained, Miss, Refused, explain_misses
from radixrt.runtime.scheduling.kv import KvSpace
from radixrt.runtime.scheduling.request import Request


def explain(kv: KvSpace, request: Request) -> Explained:
    """Return what becomes of the prompt of a request that has just found its cached prefix.

    A request of a ``select`` may carry tokens of options behind the prompt of the call; they count
    as its prompt here; ``cache.explain.cut_to`` takes them off.
    """
    n, cached = request.prompt_len, max(request.cached, 0)
    stores = min(request.loaded, max(request.fetched - (cached - request.loaded), 0))
    on_device = cached - request.loaded
    coalesced = 0
    if request.known_before >= 0:
        coalesced = max(0, on_device - request.known_before)
    if request.lease is None:
        misses: tuple[Miss, ...] = (Miss(0, n, "disabled"),)
    else:
        misses = explain_misses(
            kv.cache,
            request.namespace,
            request.token_ids[:n],
            cached,
            limit=min(request.logits_from, n),
            shared=request.namespace.removesuffix(request.salt),
            field=request.salt.partition("=")[0],
            refused=_refused(request),
            now=kv.cache.now(),
            lease=request.lease,
            below=kv.tiers.host.cache if kv.tiers is not None else None,
        )
    return Explained(n, on_device - coalesced, request.loaded - stores, stores, coalesced, misses)


def _refused(request: Request) -> Refused | None:
    if not request.refusal:
        return None
    cause: Cause = request.refusal
    return Refused(cause, request.refused_end, 1000 * request.predicted_s)
