"""The tiers under random use, with copies that end late, in any order, or fail: shared by a test
and a benchmark."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from radixrt.cache.hicache import HiCache
from radixrt.cache.host import HostTier, PageLoad
from radixrt.cache.learned import learned_policy
from radixrt.cache.movements import Fetch
from radixrt.cache.pages import Int32, PageAllocator
from radixrt.cache.radix import Lease, RadixCache
from radixrt.cache.tier import Completion, Outcome, PageRun, TierStats
from radixrt.cache.tier_policy import TierPolicy

PAGE_SIZE = 4
MAX_PARKED = 40
Tokens = tuple[int, ...]


def content(namespace: str, tokens: Sequence[int]) -> int:
    """Return what a page holds that ends the prefix ``tokens``."""
    data = np.array(tokens, np.int32).tobytes()
    digest = hashlib.blake2b(namespace.encode() + b"|" + data, digest_size=7).digest()
    return int.from_bytes(digest, "little")


class LateMove:
    """A copy that happens when the machine says so, all at once."""

    def __init__(self, source: Int32, target: Int32, of: list[int], to: list[int]) -> None:
        self.num_pages = len(source)
        self.has_failed = False
        self.is_done = False
        self.seconds = 1e-3
        self._pairs = list(zip(source.tolist(), target.tolist(), strict=True))
        self._of, self._to = of, to

    def finish(self) -> None:
        if not self.is_done:
            for source, target in self._pairs:
                self._to[target] = self._of[source]
            self.is_done = True

    def wait_layer(self, layer: int) -> None:
        self.finish()

    wait_all = finish

    def fail(self) -> None:
        """Copy a part and give up."""
        for source, target in self._pairs[: len(self._pairs) // 2]:
            self._to[target] = self._of[source]
        self.has_failed = True


class LateMover:
    name = "late"

    def __init__(self, device: list[int], host: list[int]) -> None:
        self.device = device
        self.host = host
        self.open: list[LateMove] = []

    def warm_up(self, num_pages: int) -> None:
        pass

    def load(self, pages: Int32, host_pages: Int32) -> LateMove:
        return self._begin(LateMove(host_pages, pages, self.host, self.device))

    def store(self, pages: Int32, host_pages: Int32) -> LateMove:
        return self._begin(LateMove(pages, host_pages, self.device, self.host))

    def close(self) -> None:
        for move in self.open:
            move.finish()

    def _begin(self, move: LateMove) -> LateMove:
        self.open.append(move)
        return move


class LateStore:
    """A store that answers when the machine says so, with all, a part or nothing."""

    name = "store"
    is_exact = True

    def __init__(self, host: list[int]) -> None:
        self.host = host
        self.kept: dict[bytes, int] = {}
        self.open: list[tuple[int, str, PageRun, Int32]] = []
        self._ended: list[Completion] = []
        self._tickets = 0

    def probe(self, run: PageRun) -> int:
        found = 0
        for key in run.with_keys().keys[run.first : run.last]:
            if key not in self.kept:
                break
            found += 1
        return found

    def get(self, run: PageRun, pages: Int32, deadline: float) -> int:
        return self._begin("get", run, pages)

    def put(self, run: PageRun, pages: Int32, deadline: float) -> int:
        return self._begin("put", run, pages)

    def _begin(self, kind: str, run: PageRun, pages: Int32) -> int:
        self._tickets += 1
        self.open.append((self._tickets, kind, run.with_keys(), pages.copy()))
        return self._tickets

    def finish(self, index: int, outcome: Outcome, num_pages: int) -> None:
        """End a transfer: its first ``num_pages`` are moved, the next one is garbage."""
        ticket, kind, run, pages = self.open.pop(index)
        keys = run.keys[run.first : run.last]
        for at, (key, page) in enumerate(zip(keys, pages.tolist(), strict=True)):
            if kind == "put" and at < num_pages:
                self.kept[key] = self.host[page]
            if kind == "get":
                self.host[page] = self.kept.get(key, -2) if at < num_pages else -3
                if at < num_pages and key not in self.kept:
                    num_pages, outcome = at, "missing"
                    self.host[page] = -3
        self._ended.append(Completion(ticket, outcome, min(num_pages, len(pages)), 8, 1e-3))

    def poll(self) -> list[Completion]:
        ended, self._ended = self._ended, []
        return ended

    def drop(self, run: PageRun) -> None:
        for key in run.with_keys().keys[run.first : run.last]:
            self.kept.pop(key, None)

    def stats(self) -> TierStats:
        return TierStats(ready=len(self.kept))

    def fence(self, timeout_s: float) -> bool:
        while self.open:
            self.finish(0, "ok", len(self.open[0][3]))
        return True

    def close(self) -> None:
        self.fence(0)


@dataclass(eq=False)
class Call:
    """A running request: its lease, its own pages, and a load that may be on its way."""

    namespace: str
    tokens: Tokens
    lease: Lease
    own: list[int]
    load: PageLoad | None = None
    is_cancelled: bool = False


class HiCacheMachine:
    """Programs that come, fork, pause and end, over a device that is far too small for them.

    Every page holds a number that tells whose it is; a copy reads its source when it ends, so a
    page that was given to somebody else too early shows as a wrong number.
    """

    def __init__(self, seed: int, *, num_pages: int = 60, host_pages: int = 120) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.device = [-1] * num_pages
        self.on_host = [-1] * host_pages
        self.allocator = PageAllocator(num_pages)
        learned = learned_policy(num_pages, self.clock)
        self.cache = RadixCache(self.allocator, PAGE_SIZE, clock=self.clock, policy=learned)
        self.mover = LateMover(self.device, self.on_host)
        data = np.zeros((host_pages, 8), np.uint8)
        self.host = HostTier(data, PAGE_SIZE, self.mover, clock=self.clock)
        self.store = LateStore(self.on_host)
        policy = TierPolicy(
            always_load=True, store_on="once", max_copy_pages=num_pages // 6, fetch_deadline_s=5
        )
        self.tiers = HiCache(self.cache, self.host, [self.store], policy=policy, clock=self.clock)
        self.calls: list[Call] = []
        self.parked: list[Lease] = []
        self.wishes: dict[int, int] = {}
        self.known: list[tuple[str, Tokens]] = [("a", ())]
        self.fetches: list[Fetch] = []
        self.counts: dict[str, int] = {}
        self.most_wanted = 0

    def clock(self) -> float:
        return self.now

    # ------------------------------------------------------------ one operation

    def step(self) -> None:
        """Do something."""
        if not sum(self.counts.values()) % 64:
            self.most_wanted = max(self.most_wanted, self.num_wanted)
        action = self.random.choices(ACTIONS, WEIGHTS)[0]
        self.counts[action] = self.counts.get(action, 0) + 1
        getattr(self, action)()

    def arrive(self) -> None:
        """A request comes: perhaps a known prompt, a fork of it, or a new one."""
        if len(self.calls) >= 6:
            return
        namespace, known = self.random.choice(self.known)
        cut = self.random.choice([len(known), self.random.randrange(len(known) + 1)])
        more = tuple(self.random.randrange(3) for _ in range(self.random.randrange(1, 14)))
        tokens = (known[:cut] + more)[:48]
        ids = np.array(tokens, np.int32)
        fetch = self.tiers.fetch(namespace, ids)
        if fetch is not None and self.random.random() < 0.8:
            self.fetches.append(fetch)
            self.fetches = self.fetches[-8:]
        lease = self.cache.acquire(namespace, ids)
        lease.note_use()
        call = Call(namespace, tokens[: lease.num_tokens], lease, [])
        self._expect_pages(namespace, tokens, lease.pages.tolist(), self.device)
        self.calls.append(call)
        self._load(call, tokens)
        if call.load is None:
            self._compute(call, tokens[len(call.tokens) :])

    def _load(self, call: Call, tokens: Tokens) -> None:
        ids = np.array(tokens, np.int32)
        match, _, _ = self.tiers.find(
            self.tiers.device.lookup(call.namespace, ids), call.lease.num_tokens
        )
        if match is None:
            return
        self._expect_pages(call.namespace, tokens, match.pages.tolist(), self.on_host, match.first)
        first = len(call.lease.pages)
        pages = self._take(match.num_tokens // PAGE_SIZE - first)
        if pages is None:
            self.host.unmatch(match)
            return
        call.load = self.tiers.load(match, first, pages)
        call.own = pages.tolist()
        call.tokens = tokens[: match.num_tokens]

    def compute(self) -> None:
        """A request computes some more tokens."""
        if call := self._some_call():
            more = tuple(self.random.randrange(3) for _ in range(self.random.randrange(1, 9)))
            self._compute(call, more)

    def share(self) -> None:
        """A request gives its full pages to the tree, and asks for a copy on the host."""
        call = self._some_call()
        if call is None:
            return
        full = len(call.tokens) // PAGE_SIZE * PAGE_SIZE
        before = len(call.lease.pages)
        ids = np.array(call.tokens[:full], np.int32)
        pages = np.array([*call.lease.pages.tolist(), *call.own], np.int32)
        extension = call.lease.extend(ids, pages)
        self.allocator.give(extension.duplicates)
        call.own = call.own[len(call.lease.pages) - before :]
        if self.random.random() < 0.7:
            self.tiers.backup(call.namespace, ids)

    def leave(self) -> None:
        """A request ends, parks or is cancelled; pages of a load under way wait for its end."""
        call = self._some_call(idle=False)
        if call is None:
            return
        if call.load is not None:
            call.is_cancelled = True
            return
        self._leave(call)

    def _leave(self, call: Call) -> None:
        self.calls.remove(call)
        self.allocator.give(np.array(call.own, np.int32))
        self.known.append((call.namespace, call.tokens))
        self.known = self.known[-24:]
        if self.random.random() < 0.4:
            call.lease.park(
                self.random.choice([1.0, 50.0]), pause_s=self.random.choice([None, 1.0, 30.0])
            )
            if self.random.random() < 0.3:
                call.lease.hold(self.random.choice([5.0, 500.0]), self.random.randrange(4))
            self.parked.append(call.lease)
            self.wishes[id(call.lease)] = -(-len(call.tokens) // PAGE_SIZE)
            if len(self.parked) > MAX_PARKED:
                self.unpark()
        else:
            call.lease.release(ended=self.random.random() < 0.5)

    def unpark(self) -> None:
        """A branch is closed."""
        if self.parked:
            lease = self.parked.pop(self.random.randrange(len(self.parked)))
            lease.release(ended=self.random.random() < 0.5)

    def launch(self) -> None:
        """A step starts the planned loads; sometimes it fails before it could."""
        if self.random.random() < 0.03:
            self.host.give_up_loads()
            for call in [call for call in self.calls if call.load is not None]:
                call.load = None
                self._fail(call)
            self._poll()
            return
        loads = self.tiers.take_loads()
        if loads:
            self.host.start(loads)

    def _fail(self, call: Call) -> None:
        """Nothing behind the lease is trusted."""
        self.allocator.give(np.array(call.own, np.int32))
        self.calls.remove(call)
        call.lease.release()

    def copy(self) -> None:
        """A copy ends, in any order; one to the host may fail."""
        if not self.mover.open:
            return
        move = self.mover.open.pop(self.random.randrange(len(self.mover.open)))
        if move._to is self.on_host and self.random.random() < 0.1:
            move.fail()
        else:
            move.finish()

    def transfer(self) -> None:
        """A transfer of the store ends, in any order, with all, a part or nothing."""
        if not self.store.open:
            return
        index = self.random.randrange(len(self.store.open))
        num = len(self.store.open[index][3])
        outcome = self.random.choices(OUTCOMES, [12, 1, 1, 1, 1])[0]
        done = num if outcome == "ok" else self.random.randrange(num + 1)
        self.store.finish(index, outcome if done < num else "ok", done)

    def poll(self) -> None:
        """An iteration of the engine."""
        self._poll()

    def _poll(self) -> None:
        self.tiers.poll()
        for call in list(self.calls):
            load = call.load
            if load is not None and load.move is not None and load.move.is_done:
                call.load = None
                self._expect_pages(
                    call.namespace, call.tokens, call.own, self.device, len(call.lease.pages)
                )
                if call.is_cancelled:
                    self._leave(call)

    def evict(self) -> None:
        """Memory is needed on the device, or all of a tier goes."""
        what = self.random.random()
        if what < 0.9:
            self.cache.evict(self.random.randrange(1, 12))
        elif what < 0.95:
            self.cache.clear()
        else:
            self.tiers.clear()

    def forget(self) -> None:
        """A store loses a sequence; the host drops one."""
        namespace, tokens = self.random.choice(self.known)
        ids = np.array(tokens, np.int32)
        last = len(tokens) // PAGE_SIZE
        run = PageRun(namespace, ids, PAGE_SIZE, self.random.randrange(last + 1), last)
        self.random.choice([self.store, self.host]).drop(run)

    def wait(self) -> None:
        """Time passes, deadlines too."""
        self.now += self.random.choice([0.1, 1.0, 10.0])

    def begin_namespace(self) -> None:
        """Another tenant comes."""
        self.known.append((self.random.choice("abc"), ()))

    @property
    def num_wanted(self) -> int:
        """Pages that held and parked leases would need together, had nothing been evicted."""
        parked = sum(self.wishes[id(lease)] for lease in self.parked)
        return parked + sum(-(-len(call.tokens) // PAGE_SIZE) for call in self.calls)

    # ------------------------------------------------------------ what must hold

    def check(self) -> None:
        """Assert that no page is lost, owned twice or wrong."""
        self.cache.check()
        self.host.check()
        private = sum(len(call.own) for call in self.calls)
        total = self.allocator.num_free + self.cache.num_cached + private
        assert total == self.allocator.num_usable, "a page of the device was lost"

    def check_contents(self) -> None:
        """Assert that every page of both trees holds what its tokens say."""
        for cache, memory in ((self.cache, self.device), (self.host.cache, self.on_host)):
            for namespace, ids in list(cache.sequences()):
                lease = cache.hold(namespace, ids)
                self._expect_pages(namespace, tuple(ids.tolist()), lease.pages.tolist(), memory)
                lease.release()

    def finish(self) -> None:
        """End everything; nothing may be left over."""
        self.launch_all()
        while self.calls:
            call = self.calls[0]
            call.load = None
            self._leave(call)
        for lease in self.parked:
            lease.release()
        for _ in range(10_000):
            self.launch_all()
            self.store.fence(0)
            self.tiers.poll()
            if not self.tiers.is_busy:
                break
        assert not self.tiers.is_busy, "a transfer never ends"
        self.check()
        self.check_contents()
        assert self.cache.clear() + self.allocator.num_free >= self.cache.num_cached
        assert self.allocator.num_free == self.allocator.num_usable, "a page stayed locked"
        self.host.cache.clear()
        assert self.host.pages.num_free == self.host.pages.num_usable, "a host page stayed"

    def launch_all(self) -> None:
        """Start and end every copy."""
        loads = self.tiers.take_loads()
        if loads:
            self.host.start(loads)
        while self.mover.open:
            self.mover.open.pop().finish()
        self._poll()

    # ------------------------------------------------------------ inside

    def _some_call(self, *, idle: bool = True) -> Call | None:
        calls = [c for c in self.calls if not c.is_cancelled and (c.load is None or not idle)]
        return self.random.choice(calls) if calls else None

    def _compute(self, call: Call, more: Tokens) -> None:
        tokens = (call.tokens + more)[:56]
        missing = -(-len(tokens) // PAGE_SIZE) - len(call.lease.pages) - len(call.own)
        pages = self._take(max(0, missing))
        if pages is None:
            return
        call.own += pages.tolist()
        call.tokens = tokens
        for index, page in enumerate(call.own, len(call.lease.pages)):
            end = (index + 1) * PAGE_SIZE
            self.device[page] = content(call.namespace, tokens[:end])

    def _take(self, num_pages: int) -> Int32 | None:
        """Take pages; that fails exactly when too few are free or evictable."""
        if self.allocator.num_free + self.cache.num_evictable < num_pages:
            return None
        return self.cache.take(num_pages)

    def _expect_pages(
        self, namespace: str, tokens: Tokens, pages: list[int], memory: list[int], first: int = 0
    ) -> None:
        for index, page in enumerate(pages, first):
            end = (index + 1) * PAGE_SIZE
            if end <= len(tokens):
                assert memory[page] == content(namespace, tokens[:end]), (
                    f"page {page} is not what page {index} of {namespace} {tokens} holds"
                )


OUTCOMES: tuple[Outcome, ...] = ("ok", "missing", "corrupt", "failed", "timeout")
ACTIONS = (
    *("arrive", "compute", "share", "leave", "unpark", "launch", "copy", "transfer", "poll"),
    *("evict", "forget", "wait", "begin_namespace"),
)
WEIGHTS = (12, 10, 12, 8, 2, 8, 10, 8, 14, 3, 1, 1, 1)
