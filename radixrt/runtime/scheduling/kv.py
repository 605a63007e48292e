"""Who owns which KV page: requests, the tree, the allocator; and the pool's tensors."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import torch
from numpy.typing import NDArray

from radixrt.cache.hicache import HiCache
from radixrt.cache.host import PageLoad
from radixrt.cache.knowledge import UNKNOWN, Known
from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import Lease, Lookup, RadixCache
from radixrt.runtime.device import zeros
from radixrt.runtime.scheduling.families import Families
from radixrt.runtime.scheduling.plan import PageCopy
from radixrt.runtime.scheduling.request import Request
from radixrt.runtime.scheduling.slots import SlotTable

Int32 = NDArray[np.int32]

PREFETCH_S = 1.0
"""How long before a branch is expected to go on its pages are fetched from a store."""


@dataclass(frozen=True, slots=True)
class KvPool:
    """K and V of all layers, each [num_layers, num_pages, page_size, num_kv_heads, head_dim]."""

    k: torch.Tensor
    v: torch.Tensor

    @classmethod
    def zeros(
        cls,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KvPool:
        """Return a pool of zeros; on a CPU its memory is touched only as pages are used."""
        shape = (num_layers, num_pages, page_size, num_kv_heads, head_dim)
        return cls(zeros(shape, dtype, device), zeros(shape, dtype, device))


@dataclass(slots=True)
class Parked:
    """The path of an idle branch: a soft lease, and its tokens to tell what eviction took.

    ``wakes_at`` is the clock time at which the branch is expected to go on, if it is known.
    """

    lease: Lease
    token_ids: Int32
    wakes_at: float | None = None
    namespace: str = ""


class KvSpace:
    """Moves pages between the allocator, the running requests and the tree.

    A running request with n computed tokens and a lease of m (a multiple of the page size)::

        tokens  [0 ............ m)[m ..................... n)
        pages    the tree's,       the request's own: written by it alone
                 locked by lease

    ``free + cached + private == usable`` holds between any two calls. The device executes copies
    and steps in the order in which they were decided here, so a page may change hands as soon as
    its last use was *decided*; copies not yet handed to a step wait in ``copies``.

    With ``tiers`` a request's pages may also come from the host: they are private like computed
    ones until the step that loads them was read back.
    """

    def __init__(
        self,
        cache: RadixCache,
        allocator: PageAllocator,
        slots: SlotTable,
        *,
        reuse: bool = True,
        tiers: HiCache | None = None,
    ) -> None:
        self.cache = cache
        self.allocator = allocator
        self.slots = slots
        self.page_size = slots.page_size
        self.reuse = reuse
        self.tiers = tiers
        self.copies: list[PageCopy] = []
        self.parked: dict[int, Parked] = {}
        self.families = Families(self._parked_lease)
        self._wishes: dict[int, tuple[float, int]] = {}
        self._wakeups: list[tuple[float, int]] = []

    @property
    def num_usable(self) -> int:
        """Pages there are."""
        return self.allocator.num_pages - 1

    @property
    def num_available(self) -> int:
        """Pages that are free or can be made free at once."""
        return self.allocator.num_free + self.cache.num_evictable

    def pages_of(self, num_tokens: int) -> int:
        """Return how many pages hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.page_size)

    def take(self, n: int, whom: int = 0) -> Int32:
        """Return ``n`` pages, evicting what is needed for request number ``whom``; the caller saw
        to it that they are there."""
        return self.cache.take(n, whom)

    def peek(self, request: Request) -> int:
        """Return how many tokens a waiting request would find cached; changes nothing."""
        if not self.reuse or not request.is_cached:
            return 0
        return self._look_up(request).num_tokens

    def _look_up(self, request: Request) -> Lookup:
        """Return what is cached of a waiting request. It is asked several times until it runs; its
        tokens stay what they are meanwhile."""
        if request.lookup is None:
            token_ids = request.token_ids[: request.logits_from]
            request.lookup = self.cache.lookup(request.namespace, token_ids)
        return request.lookup

    def match(self, request: Request) -> int:
        """Lock the longest cached prefix of a waiting request; return its tokens, tail included."""
        if not self.reuse or not request.is_cached:
            return 0
        lease = self.cache.acquire_found(self._look_up(request))
        request.lease = lease
        return lease.num_tokens + (lease.tail.num_tokens if lease.tail is not None else 0)

    def unmatch(self, request: Request) -> None:
        """Undo ``match``."""
        if request.lease is not None:
            request.lease.release()
            request.lease = None

    def note_use(self, request: Request, *, is_first: bool) -> None:
        """Count an admitted request as a use of what it asks for; once, and not for what follows a
        prompt in the trie of options."""
        lease, selection = request.lease, request.selection
        if lease is not None:
            is_root = selection is None or selection.is_root(request)
            lease.note_use(is_first=is_first and is_root, known=self._known_of(request))

    def _known_of(self, request: Request) -> Known:
        """Return what is known of the first pages of a request that its branch had before."""
        parked = self.parked.get(request.branch)
        if parked is None or parked.namespace != request.namespace:
            return UNKNOWN
        num = min(len(parked.token_ids), request.logits_from)
        differs = parked.token_ids[:num] != request.token_ids[:num]
        if differs.any():
            num = int(differs.argmax())
        return parked.lease.known_of(num // self.page_size)

    def adopt(self, request: Request) -> None:
        """Put the matched pages into the page table of the request's slot. The matched tail, a page
        of the tree that continues the match, is copied to a page of the request's own."""
        lease, slots, slot = request.lease, self.slots, request.slot
        if lease is None:
            return
        num_pages, num_tokens = len(lease.pages), lease.num_tokens
        slots.pages[slot, :num_pages] = lease.pages
        slots.note_missing(slot, num_tokens)
        loaded = self._load(request, lease) if self.tiers is not None else 0
        if loaded:
            num_pages, num_tokens = self.pages_of(loaded), loaded
        elif lease.tail is not None:
            page = self.cache.take_one(request.id)
            if page != lease.tail.page:  # it may have been the one to be evicted
                self.copies.append(PageCopy(lease.tail.page, page, lease.tail.num_tokens))
            slots.pages[slot, num_pages] = page
            num_pages += 1
            num_tokens += lease.tail.num_tokens
        if self.tiers is not None and num_tokens:
            self.tiers.sighted(request.namespace, request.token_ids[:num_tokens])
        slots.num_pages[slot] = num_pages
        slots.num_computed[slot] = slots.num_committed[slot] = num_tokens
        request.lookup = None

    def _load(self, request: Request, lease: Lease) -> int:
        """Plan to load what the host knows beyond the device, into pages of the request's own;
        return how many tokens are known then, 0 when nothing is to be loaded."""
        assert self.tiers is not None
        known = lease.num_tokens + (lease.tail.num_tokens if lease.tail is not None else 0)
        match, refusal, seconds = self.tiers.find(self._look_up(request), known)
        if refusal:
            request.refusal, request.predicted_s = refusal, seconds
            token_ids = request.token_ids[: request.logits_from]
            request.refused_end = self.tiers.host.cache.peek(request.namespace, token_ids)
        if match is None:
            return 0
        first = len(lease.pages)
        last = match.num_tokens // self.page_size
        pages = self.take(last - first, request.id)
        self.tiers.load(match, first, pages)
        self.slots.pages[request.slot, first:last] = pages
        request.loaded += match.num_tokens - known
        return match.num_tokens

    def fetch(self, request: Request) -> bool:
        """Whether a request has something to wait for: pages that a store knows and the host does
        not, on their way to the host."""
        if self.tiers is None or not self.reuse or not request.is_cached:
            return False
        request.fetch = self.tiers.fetch(
            request.namespace, request.token_ids[: request.logits_from]
        )
        return request.fetch is not None

    def take_loads(self) -> list[PageLoad]:
        """Return the loads that the next step starts."""
        return self.tiers.take_loads() if self.tiers is not None else []

    def distrust(self) -> None:
        """A step failed: a page whose copy, load or write never happened may be in the tree."""
        self.copies = []
        if self.tiers is not None:
            self.tiers.host.give_up_loads()
        self.cache.clear()

    def grow(self, rows: Int32, ends: Int32) -> None:
        """Give the slots ``rows`` pages up to ``ends`` tokens each; they are available."""
        slots = self.slots
        have = slots.num_pages[rows]
        more = -(-ends // self.page_size) - have
        total = int(more.sum())
        if total == 0:
            return
        first = slots.requests[int(rows[int(more.argmax())])]
        pages = self.take(total, first.id if first is not None else 0)
        row_of = np.repeat(np.arange(len(rows)), more)
        offset = np.arange(total) - np.repeat(np.cumsum(more) - more, more)
        slots.pages[rows[row_of], have[row_of] + offset] = pages
        slots.num_pages[rows] = have + more

    def grow_one(self, slot: int, end: int) -> None:
        """Give one slot pages up to ``end`` tokens; they are available."""
        have, want = int(self.slots.num_pages[slot]), self.pages_of(end)
        if want > have:
            request = self.slots.requests[slot]
            whom = request.id if request is not None else 0
            if want - have == 1:
                self.slots.pages[slot, have] = self.cache.take_one(whom)
            else:
                self.slots.pages[slot, have:want] = self.take(want - have, whom)
            self.slots.num_pages[slot] = want

    def share(self, request: Request, num_tokens: int) -> None:
        """Hand the request's full pages of its first ``num_tokens`` committed tokens to the tree.

        Before: ``[m, n)`` is private. After: the lease covers all full pages, the table names the
        tree's pages, and pages that the tree had already are free again.
        """
        lease = request.lease
        num_pages = num_tokens // self.page_size
        if lease is None or num_pages * self.page_size <= lease.num_tokens:
            return
        slots, slot = self.slots, request.slot
        extension = lease.extend(
            slots.tokens[slot, : num_pages * self.page_size], slots.pages[slot, :num_pages]
        )
        slots.pages[slot, :num_pages] = extension.pages
        self.allocator.give(extension.duplicates)
        if self.tiers is not None and num_tokens >= slots.num_known[slot]:
            self.tiers.backup(request.namespace, slots.tokens[slot, :num_tokens].copy())

    def share_tail(self, request: Request, num_tokens: int) -> None:
        """Hand the tree a copy of the request's partly filled last page as well: others wait for
        it while the request goes on writing its own. Does nothing when memory is short."""
        slots, slot = self.slots, request.slot
        num_full, num_tail = divmod(num_tokens, self.page_size)
        if request.lease is None or num_tail == 0 or self.num_available < 1:
            return
        page = self.cache.take_one(request.id)
        self.copies.append(PageCopy(int(slots.pages[slot, num_full]), page, num_tail))
        token_ids = slots.tokens[slot, :num_tokens]
        lease = self.cache.acquire(request.namespace, token_ids)
        pages = np.append(slots.pages[slot, :num_full], np.int32(page))
        self.allocator.give(lease.extend(token_ids, pages, final=True).duplicates)
        lease.release()

    def leave(self, request: Request, *, keep: bool) -> Lease | None:
        """Take a request's pages away: what it committed goes to the tree (with ``keep``; without,
        a step failed and nothing past the lease is trusted), the rest to the allocator.

        Returns the lease, still locking the committed path; the caller parks or releases it.
        """
        slots, slot, lease = self.slots, request.slot, request.lease
        num_pages = int(slots.num_pages[slot])
        num_tokens = int(slots.num_committed[slot])
        num_kept = 0
        if lease is not None:
            num_kept = len(lease.pages)
            if keep and num_tokens > lease.num_tokens:
                num_kept = self.pages_of(num_tokens)
                extension = lease.extend(
                    slots.tokens[slot, :num_tokens], slots.pages[slot, :num_kept], final=True
                )
                self.allocator.give(extension.duplicates)
                if self.tiers is not None:
                    self.tiers.backup(request.namespace, slots.tokens[slot, :num_tokens].copy())
        self.allocator.give(slots.pages[slot, num_kept:num_pages].copy())
        request.lease = None
        return lease

    def park(self, request: Request, lease: Lease, token_ids: Int32, bias_s: float) -> None:
        """Keep the path of a branch that is idle now as a bias against eviction, in place of its
        earlier one."""
        branch, pause_s = request.branch, request.pause_s
        lease.park(bias_s, pause_s=pause_s)
        self._drop_parked(branch, ended=False)
        wakes_at = None if pause_s is None else self.cache.now() + pause_s
        self.parked[branch] = Parked(lease, token_ids, wakes_at, request.namespace)
        if wakes_at is not None and self.tiers is not None:
            heappush(self._wakeups, (wakes_at - PREFETCH_S, branch))
        if branch in self._wishes:
            lease.hold(*self._wishes[branch])
            self._keep(branch)
        else:
            self.families.parked(request.family, branch, lease)

    def hold(self, branch: int, ttl_s: float, priority: int) -> None:
        """Keep what a branch has cached or will have for ``ttl_s`` seconds of disuse; 0: no
        longer."""
        if ttl_s > 0:
            self._wishes[branch] = ttl_s, priority
        else:
            self._wishes.pop(branch, None)
        parked = self.parked.get(branch)
        if parked is not None:
            parked.lease.hold(ttl_s, priority)
            if ttl_s > 0:
                self._keep(branch)

    def _keep(self, branch: int) -> None:
        """A prefix that a program leases goes to the stores at once."""
        parked = self.parked[branch]
        if self.tiers is not None:
            self.tiers.copy_down(parked.namespace, parked.token_ids)
            self.tiers.keep(parked.namespace, parked.token_ids)

    def prefetch(self) -> None:
        """Bring what a store has of a branch that is about to go on to the host."""
        now = self.cache.now()
        while self._wakeups and self._wakeups[0][0] <= now:
            _, branch = heappop(self._wakeups)
            parked = self.parked.get(branch)
            if parked is not None and parked.wakes_at is not None and self.tiers is not None:
                self.tiers.fetch(parked.namespace, parked.token_ids)

    def release_branch(self, branch: int, *, ended: bool = False) -> None:
        """Drop what is parked under a branch; ``ended`` makes its own tail go first."""
        self._wishes.pop(branch, None)
        self._drop_parked(branch, ended=ended)

    def _parked_lease(self, branch: int) -> Lease | None:
        parked = self.parked.get(branch)
        return None if parked is None or branch in self._wishes else parked.lease

    def _drop_parked(self, branch: int, *, ended: bool) -> None:
        parked = self.parked.pop(branch, None)
        if parked is not None:
            parked.lease.release(ended=ended)

    def num_evicted(self, request: Request, cached: int) -> int:
        """Return how many prompt tokens past ``cached`` the request's branch had parked."""
        parked = self.parked.get(request.branch)
        if parked is None:
            return 0
        n = min(len(parked.token_ids), request.prompt_len, request.logits_from)
        if n <= cached:
            return 0
        differs = parked.token_ids[:n] != request.token_ids[:n]
        common = int(differs.argmax()) if differs.any() else n
        return max(0, common - cached)

    def num_private(self) -> int:
        """Return how many pages the running requests own, for checks."""
        slots = self.slots
        return sum(
            int(slots.num_pages[request.slot])
            - (len(request.lease.pages) if request.lease is not None else 0)
            for request in slots.requests
            if request is not None
        )

    def check(self) -> None:
        """Assert that every page has one owner."""
        self.cache.check()
        if self.tiers is not None:
            self.tiers.host.check()
        private = self.num_private()
        total = self.allocator.num_free + self.cache.num_cached + private
        assert total == self.num_usable, (
            f"{self.allocator.num_free} free + {self.cache.num_cached} cached + {private} private "
            f"!= {self.num_usable} usable pages"
        )
        owned = [
            self.slots.pages[
                r.slot, len(r.lease.pages) if r.lease else 0 : self.slots.num_pages[r.slot]
            ]
            for r in self.slots.requests
            if r is not None
        ]
        pages = np.concatenate(owned) if owned else np.zeros(0, np.int32)
        assert len(np.unique(pages)) == len(pages), "a private page belongs to two requests"
        assert not self.allocator.is_free(pages).any(), "a private page is free"
