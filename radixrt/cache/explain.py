"""Why a prompt's tokens were computed: one cause for each, and what served the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from radixrt.cache.history import Eviction
from radixrt.cache.pagehash import UInt64
from radixrt.cache.pages import Int32
from radixrt.cache.radix import Lease, RadixCache

Cause = Literal[
    "never_seen",
    "diverged",
    "page_tail",
    "evicted",
    "namespace",
    "corrupt",
    "timeout",
    "failed",
    "not_worth",
    "disabled",
]
"""``never_seen``  nobody is known to have sent these tokens after what is before them
``diverged``    something else follows the cached prefix there
``page_tail``   known, but a prompt's last token is computed for what comes after it
``evicted``     was cached once
``namespace``   is cached where this request may not look
``corrupt``, ``timeout``, ``failed``   a store had it, and what happened when it was asked
``not_worth``   a tier has it, and computing it was predicted to be quicker
``disabled``    the request does not use the cache"""

CONTEXT_TOKENS = 8
"""Tokens that are shown of what follows the cached prefix instead."""

_SAME_S = 1.0
"""Evictions of neighbouring pages so close in time are told as one."""


class Miss(NamedTuple):
    """The prompt's tokens ``[start, end)`` were not served, for one reason.

    ``tier``, ``ago_s`` and ``whom`` (the number of a request; 0: nobody) belong to an eviction,
    ``field`` to a namespace, ``predicted_ms`` to what was not worth loading, ``theirs`` (tokens
    that follow instead) to a divergence.
    """

    start: int
    end: int
    cause: Cause
    tier: str = ""
    ago_s: float = 0.0
    whom: int = 0
    field: str = ""
    predicted_ms: float = 0.0
    theirs: tuple[int, ...] = ()


class Explained(NamedTuple):
    """What became of a prompt's tokens when its request was admitted.

    Counts of tokens: ``device`` + ``host`` + ``stores`` + ``coalesced`` + those of all ``misses``
    are ``prompt``. ``coalesced`` were computed by another request while this one waited for it.
    """

    prompt: int
    device: int
    host: int
    stores: int
    coalesced: int
    misses: tuple[Miss, ...]


class Refused(NamedTuple):
    """Tokens up to ``end`` that a tier had and did not give, and why."""

    cause: Cause
    end: int
    predicted_ms: float = 0.0


def explain_misses(
    cache: RadixCache,
    namespace: str,
    token_ids: Int32,
    num_cached: int,
    *,
    limit: int,
    shared: str,
    field: str,
    refused: Refused | None,
    now: float,
    lease: Lease,
    below: RadixCache | None = None,
) -> tuple[Miss, ...]:
    """Return the misses that make up ``[num_cached, n)`` of a prompt, int32 [n], in order.

    ``limit`` is how much of the prompt may come from the cache at all. ``shared`` is the namespace
    that everybody may see, ``field`` what sets this request's apart from it. Prefixes of other
    tenants are never looked for: that they exist is their secret. ``below`` is the host's cache, if
    there is one: a page is evicted when the last tier has given it up. ``lease`` was acquired for
    the first ``limit`` tokens, has noted their use and was not extended since.
    """
    n = len(token_ids)
    misses: list[Miss] = []
    at = num_cached
    if at >= limit:
        return (Miss(at, n, "page_tail"),) if at < n else ()
    if refused is not None and refused.end > at:
        end = min(refused.end, limit)
        misses.append(Miss(at, end, refused.cause, predicted_ms=refused.predicted_ms))
        at = end
    if namespace != shared and (end := min(cache.peek(shared, token_ids[:limit]), limit)) > at:
        misses.append(Miss(at, end, "namespace", field=field))
        at = end
    page_size = cache.page_size
    keys = lease.page_keys
    for page, eviction in _evictions(cache, below, namespace, token_ids, at // page_size, keys):
        end = min((page + 1) * page_size, n)
        if eviction is None or end <= at:
            if end > at:
                break
            continue
        _add(misses, at, end, eviction, now)
        at = end
    if at < n:
        theirs = lease.following(CONTEXT_TOKENS) if at == num_cached and at > 0 else ()
        if len(theirs):
            misses.append(Miss(at, n, "diverged", theirs=tuple(map(int, theirs))))
        else:
            misses.append(Miss(at, n, "never_seen"))
    return tuple(misses)


def _evictions(
    cache: RadixCache,
    below: RadixCache | None,
    namespace: str,
    token_ids: Int32,
    first_page: int,
    keys: UInt64 | None,
) -> Iterator[tuple[int, Eviction | None]]:
    """Yield each page with its last eviction from either cache."""
    if below is None:
        yield from cache.evictions(namespace, token_ids, first_page, keys)
        return
    upper = cache.evictions(namespace, token_ids, first_page, keys)
    lower = below.evictions(namespace, token_ids, first_page, keys)
    for (page, one), (_, other) in zip(upper, lower, strict=False):
        known = [eviction for eviction in (one, other) if eviction is not None]
        yield page, max(known, key=lambda eviction: eviction.when, default=None)


def cut_to(explained: Explained, prompt_len: int) -> Explained:
    """Return the account of the first ``prompt_len`` tokens of a prompt."""
    left = prompt_len
    counts = []
    # The prefix is made up in this order: the device's, what was waited for, the tiers below.
    for count in (explained.device, explained.coalesced, explained.stores, explained.host):
        counts.append(min(count, left))
        left -= counts[-1]
    device, coalesced, stores, host = counts
    misses = tuple(
        miss._replace(end=min(miss.end, prompt_len))
        for miss in explained.misses
        if miss.start < prompt_len
    )
    return Explained(prompt_len, device, host, stores, coalesced, misses)


def _add(misses: list[Miss], start: int, end: int, eviction: Eviction, now: float) -> None:
    ago_s = max(now - eviction.when, 0.0)
    last = misses[-1] if misses else None
    if (
        last is not None
        and last.cause == "evicted"
        and (last.tier, last.whom) == (eviction.tier, eviction.whom)
        and abs(last.ago_s - ago_s) < _SAME_S
    ):
        misses[-1] = last._replace(end=end)
    else:
        misses.append(
            Miss(start, end, "evicted", tier=eviction.tier, ago_s=ago_s, whom=eviction.whom)
        )
