"""A remote tier: pages in a Redis or Valkey server that several runtimes share."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import redis
from numpy.typing import NDArray

from radixrt.cache.pages import Int32
from radixrt.cache.records import Layout, identity, pack_header, verify
from radixrt.cache.tickets import Job, Transfers
from radixrt.cache.tier import Completion, Outcome, PageRun, TierStats
from radixrt.errors import ConfigError

log = logging.getLogger(__name__)

PREFIX = b"radixrt:1:"
NUM_READERS = 2
BATCH_BYTES = 8 << 20
"""Bytes of one round trip."""

CONNECT_TIMEOUT_S = 1.0
CALL_TIMEOUT_S = 2.0
"""How long one round trip may take before the server counts as gone."""

RETRY_AFTER_S = 5.0
"""How long a server that did not answer is left alone."""

MISS_TTL_S = 1.0
NUM_MISSES = 65_536
"""Keys that were missing a moment ago are not asked for again."""


class RemoteTier:
    """Pages in a server that speaks RESP; see ``Tier``. ``pages`` are the host pool's.

    ``data`` uint8 [n, page_bytes] is that pool. A page is one value, header and bytes as on disk,
    under its key and the layout's name; it is verified when it is read, so what another runtime
    wrote, or anybody else, is believed only where namespace, prefix, tokens and checksums agree.
    What the server evicts is its own matter (``maxmemory-policy``); ``ttl_s`` lets pages expire, 0
    keeps them.

    Only asking tells what the server has: ``probe`` is an upper bound, and ``get`` ends ``missing``
    at the first page that is not there. A server that does not answer costs one request its
    deadline, then nobody anything for ``RETRY_AFTER_S``.
    """

    name = "remote"
    is_exact = False

    def __init__(
        self,
        url: str,
        layout: Layout,
        data: NDArray[np.uint8],
        *,
        ttl_s: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_connect_timeout=CONNECT_TIMEOUT_S,
                socket_timeout=CALL_TIMEOUT_S,
                retry=None,
                decode_responses=False,
            )
        except ValueError as error:
            raise ConfigError(f"remote={url}: {error}") from error
        self.layout = layout
        self._data = data
        self._ttl_s = ttl_s
        self._clock = clock
        self._prefix = PREFIX + layout.name.hex().encode() + b":"
        self._batch = max(1, BATCH_BYTES // layout.record_bytes)
        self._gone_until = 0.0
        self._misses: OrderedDict[bytes, float] = OrderedDict()
        self._stats = TierStats()
        self._transfers = Transfers(
            "radixrt-remote",
            self._read,
            self._write,
            page_bytes=layout.page_bytes,
            stats=self._stats,
            clock=clock,
            num_readers=NUM_READERS,
        )

    # ------------------------------------------------------------ tier

    def probe(self, run: PageRun) -> int:
        """See ``Tier``; 0 while the server does not answer and where it just said that it lacks
        the first page."""
        if run.first == run.last or self._is_gone() or self._transfers.is_stalled():
            return 0
        missed = self._misses.get(run.with_keys().keys[run.first])
        if missed is not None and self._clock() < missed + MISS_TTL_S:
            return 0
        return run.num_pages

    def get(self, run: PageRun, pages: Int32, deadline: float) -> int:
        """See ``Tier``."""
        return self._transfers.get(run, pages, deadline)

    def put(self, run: PageRun, pages: Int32, deadline: float) -> int:
        """See ``Tier``; the deadline is not looked at, for nobody waits for a put."""
        return (
            self._transfers.refuse("failed") if self._is_gone() else self._transfers.put(run, pages)
        )

    def poll(self) -> Sequence[Completion]:
        """See ``Tier``."""
        return self._transfers.poll()

    def drop(self, run: PageRun) -> None:
        """See ``Tier``; the one call that goes to the server at once."""
        if run.num_pages and not self._is_gone():
            keys = run.with_keys().keys[run.first : run.last]
            try:
                self._client.delete(*(self._prefix + key for key in keys))
            except redis.RedisError as error:
                self._lost(error)

    def stats(self) -> TierStats:
        """See ``Tier``; ``capacity`` and ``ready`` are the server's business and stay 0."""
        self._stats.timeouts = self._transfers.num_timeouts
        return self._stats

    def fence(self, timeout_s: float) -> bool:
        """See ``Tier``: the server has answered every put before."""
        return self._transfers.fence(timeout_s)

    def close(self) -> None:
        """See ``Tier``."""
        self._transfers.close()
        with contextlib.suppress(redis.RedisError):
            self._client.close()

    # ------------------------------------------------------------ reading

    def _read(self, job: Job) -> tuple[Outcome, int]:
        done = 0
        outcome: Outcome = "ok"
        while done < job.run.num_pages and outcome == "ok":
            if self._clock() > job.deadline:
                return "timeout", done
            more, outcome = self._read_batch(job, done)
            done += more
        return outcome, done

    def _read_batch(self, job: Job, start: int) -> tuple[int, Outcome]:
        """Read the next pages of a job in one round trip; return how many came."""
        run = job.run
        first = run.first + start
        keys = run.keys[first : min(run.last, first + self._batch)]
        try:
            values = self._client.mget([self._prefix + key for key in keys])
        except redis.RedisError as error:
            self._lost(error)
            self._stats.failed += len(keys)
            return 0, "failed"
        for index, (key, value) in enumerate(zip(keys, values, strict=True)):
            if value is None:
                self._miss(key)
                return index, "missing"
            assert isinstance(value, bytes), "decode_responses is off"
            record = memoryview(value)
            header, payload = record[: self.layout.header_bytes], record[self.layout.header_bytes :]
            flaw = verify(self.layout, identity(run, first + index), header, payload)
            if flaw:
                log.warning("a page of the remote store is wrong (%s) and removed", flaw)
                self._stats.corrupt += 1
                self._remove(key)
                return index, "corrupt"
            self._data[job.pages[start + index]] = np.frombuffer(payload, np.uint8)
        return len(keys), "ok"

    def _miss(self, key: bytes) -> None:
        self._misses[key] = self._clock()
        while len(self._misses) > NUM_MISSES:
            self._misses.popitem(last=False)

    def _remove(self, key: bytes) -> None:
        try:
            self._client.delete(self._prefix + key)
        except redis.RedisError as error:
            self._lost(error)

    # ------------------------------------------------------------ writing

    def _write(self, jobs: list[Job]) -> list[tuple[Outcome, int]]:
        (job,) = jobs
        num_pages, done = job.run.num_pages, 0
        outcome: Outcome = "ok"
        while done < num_pages and outcome == "ok":
            count = min(self._batch, num_pages - done)
            outcome = self._write_batch(job, done, count)
            done += count if outcome == "ok" else 0
        self._stats.failed += num_pages - done
        self._transfers.wrote(done)
        return [(outcome, done)]

    def _write_batch(self, job: Job, start: int, count: int) -> Outcome:
        pipeline = self._client.pipeline(transaction=False)
        for index in range(start, start + count):
            whose = identity(job.run, job.run.first + index)
            payload = memoryview(self._data[job.pages[index]])
            value = pack_header(self.layout, whose, payload) + payload
            pipeline.set(self._prefix + whose.key, value, ex=self._ttl_s or None)
            self._misses.pop(whose.key, None)
        try:
            pipeline.execute()
        except redis.ResponseError as error:
            # An answer, not silence: out of memory (with noeviction), read-only, …
            log.warning("the remote store refuses pages: %s", error)
            return "full" if isinstance(error, redis.exceptions.OutOfMemoryError) else "failed"
        except redis.RedisError as error:
            self._lost(error)
            return "failed"
        return "ok"

    # ------------------------------------------------------------ a server that is gone

    def _is_gone(self) -> bool:
        return self._clock() < self._gone_until

    def _lost(self, error: redis.RedisError) -> None:
        if not self._is_gone():
            log.warning("the remote store does not answer: %s", error)
        self._gone_until = self._clock() + RETRY_AFTER_S
