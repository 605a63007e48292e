"""A pool of pages whose bytes tell whose they are, and calls on a tier that wait."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from radixrt.cache.pages import Int32
from radixrt.cache.records import Layout
from radixrt.cache.tier import Completion, PageRun, Tier

PAGE_SIZE = 4
PAGE_BYTES = 200
LAYOUT = Layout(PAGE_SIZE, PAGE_BYTES, b"layout of a test")
FOREVER = float("inf")


class Pool:
    """The pool above a tier; page 0 stays unused."""

    def __init__(self, num_pages: int = 256) -> None:
        self.data = np.zeros((num_pages, PAGE_BYTES), np.uint8)

    def write(self, run: PageRun, start: int = 1) -> Int32:
        """Put the contents of a run's pages into the pages from ``start`` on; return these."""
        pages = np.arange(start, start + run.num_pages, dtype=np.int32)
        for page, key in zip(pages, run.with_keys().keys[run.first :], strict=True):
            self.data[page] = contents(key)
        return pages

    def holds(self, run: PageRun, pages: Int32) -> bool:
        """Whether the pages hold the contents of the run's pages."""
        keys = run.with_keys().keys[run.first : run.last]
        return all(
            np.array_equal(self.data[page], contents(key))
            for page, key in zip(pages[: len(keys)], keys, strict=True)
        )


def contents(key: bytes) -> Any:
    """Return the bytes that the page of a key holds, uint8 [PAGE_BYTES]."""
    return np.frombuffer((key * (PAGE_BYTES // len(key) + 1))[:PAGE_BYTES], np.uint8)


def run_of(seed: int, num_pages: int, *, namespace: str = "model", first: int = 0) -> PageRun:
    """Return the pages of a sequence that belongs to ``seed``."""
    tokens = np.random.default_rng(seed).integers(0, 1000, num_pages * PAGE_SIZE).astype(np.int32)
    return PageRun(namespace, tokens, PAGE_SIZE, first, num_pages).with_keys()


def wait(tier: Tier, ticket: int, timeout_s: float = 20) -> Completion:
    """Return the completion of a ticket."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        for completion in tier.poll():
            if completion.ticket == ticket:
                return completion
        time.sleep(0.0005)
    raise AssertionError(f"ticket {ticket} has not ended")


def put(tier: Tier, pool: Pool, run: PageRun) -> Completion:
    return wait(tier, tier.put(run, pool.write(run), FOREVER))


def get(tier: Tier, pool: Pool, run: PageRun, deadline: float = FOREVER) -> Completion:
    """Read a run into cleared pages; what the completion says was read is checked."""
    pages = np.arange(1, run.num_pages + 1, dtype=np.int32)
    pool.data[pages] = 0
    ended = wait(tier, tier.get(run, pages, deadline))
    assert pool.holds(run.part(run.first, run.first + ended.num_pages), pages), "wrong bytes"
    return ended
