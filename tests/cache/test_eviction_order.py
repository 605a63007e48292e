"""The eviction policy, as a table: what was done, and in which order pages are then given up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import Lease, RadixCache

Action = Callable[["Story"], None]


class Story:
    """A cache with pages of 2 tokens, told in letters: one letter is the two tokens of a page."""

    def __init__(self) -> None:
        self.now = 0.0
        self.allocator = PageAllocator(100)
        self.cache = RadixCache(self.allocator, 2, clock=lambda: self.now)
        self.parked: dict[str, Lease] = {}
        self.held: dict[str, Lease] = {}
        self.letters: dict[int, str] = {}

    def compute(self, text: str) -> Lease:
        self.now += 1.0
        tokens = np.repeat(np.frombuffer(text.encode(), np.uint8).astype(np.int32), 2)
        lease = self.cache.acquire("story", tokens)
        new = self.cache.take(len(text) - len(lease.pages))
        extension = lease.extend(tokens, np.concatenate([lease.pages, new]))
        self.allocator.give(extension.duplicates)
        self.letters.update(zip(extension.pages.tolist(), text, strict=True))
        return lease

    def evicted(self) -> str:
        """Evict page by page; return the letters in the order of their eviction."""
        order = ""
        while self.cache.num_evictable:
            cached = {page for page in self.letters if self.is_cached(page)}
            assert self.cache.evict(1) == 1
            (gone,) = (page for page in cached if not self.is_cached(page))
            order += self.letters[gone]
            self.cache.check()
        return order

    def is_cached(self, page: int) -> bool:
        return not self.allocator.is_free(np.array([page], dtype=np.int32))[0]


def use(*texts: str) -> Action:
    def act(story: Story) -> None:
        for text in texts:
            story.compute(text).release()

    return act


def end(text: str) -> Action:
    return lambda story: story.compute(text).release(ended=True)


def park(text: str, bias_s: float) -> Action:
    def act(story: Story) -> None:
        story.parked[text] = story.compute(text)
        story.parked[text].park(bias_s)

    return act


def release_parked(text: str, *, ended: bool) -> Action:
    return lambda story: story.parked[text].release(ended=ended)


def hold(text: str) -> Action:
    return lambda story: story.held.update({text: story.compute(text)})


def let_go(text: str) -> Action:
    def act(story: Story) -> None:
        story.now += 1.0
        story.held[text].release()

    return act


def evict(num_pages: int) -> Action:
    return lambda story: story.cache.evict(num_pages)


ORDERS = [
    # what happened, and what is evicted: first → last
    ("a leaf goes from its end", [use("abc")], "cba"),
    ("least recently used first", [use("ab", "cd", "ef")], "badcfe"),
    ("use counts, not insertion", [use("ab", "cd", "ab")], "dcba"),
    ("leaves before what they share", [use("abx", "aby", "abz")], "xyzba"),
    ("a shared prefix is as recent as its last use", [use("ax", "b", "ay")], "xbya"),
    ("a prefix used alone is recent, its rest is not", [use("abcd", "ef", "ab")], "dcfeba"),
    ("an ended program goes first", [use("ab"), end("cd"), use("ef")], "dcbafe"),
    ("of the ended, the first to end", [use("ab"), end("cd"), end("ef")], "dcfeba"),
    ("an end spares what others have branched off", [use("ax"), end("ay")], "yxa"),
    ("an ended run that is used again is not ended", [end("ab"), use("cd", "ab")], "dcba"),
    ("used in part again: only the rest is ended", [end("abcd"), use("ef", "ab")], "dcfeba"),
    ("a parked branch waits", [park("ab", 10), use("cd", "ef")], "dcfeba"),
    ("a bias decays by itself", [park("ab", 1.5), use("cd", "ef")], "dcbafe"),
    ("a parked branch is evictable", [park("ab", 1e9)], "ba"),
    ("parked branches go by when they are due", [park("ab", 9), park("cd", 1)], "dcba"),
    (
        "parked, then ended: first",
        [park("ab", 100), use("cd"), release_parked("ab", ended=True)],
        "badc",
    ),
    (
        "an end spares what another parked branch needs",
        [park("ab", 10), park("abc", 10), use("d"), release_parked("abc", ended=True)],
        "cdba",
    ),
    (
        "parked, then released: the bias stays until it decays",
        [park("ab", 10), use("cd"), release_parked("ab", ended=False)],
        "dcba",
    ),
    (
        "an end spares what has been continued since",
        [park("ab", 10), use("abc", "d"), release_parked("ab", ended=True)],
        "cdba",
    ),
    (
        "an end takes the bias along",
        [park("ab", 100), release_parked("ab", ended=True), end("cd")],
        "badc",
    ),
    (
        "an end spares what had other branches once",
        [use("ax", "ay"), evict(1), use("b"), end("ay")],
        "yba",
    ),
    ("a prefix was used when its ended branch was", [use("ax", "ay", "b"), end("ax")], "xyba"),
    ("a use lasts until the release", [hold("ab"), use("cd"), let_go("ab")], "dcba"),
    ("what is held is not evicted", [use("abx", "aby"), hold("ab")], "xy"),
    ("a held run keeps only itself", [use("abcd"), hold("ab")], "dc"),
]


@pytest.mark.parametrize(("story", "actions", "order"), ORDERS, ids=[row[0] for row in ORDERS])
def test_pages_are_evicted_in_this_order(story: str, actions: list[Action], order: str) -> None:
    told = Story()
    for act in actions:
        act(told)
    assert told.evicted() == order, story


def test_evicting_many_pages_takes_the_same_victims_as_evicting_one_by_one() -> None:
    for num_pages in range(10):
        told = Story()
        use("abx", "aby", "cd", "abz")(told)
        assert told.cache.evict(num_pages) == min(num_pages, 7)
        left = {letter for page, letter in told.letters.items() if told.is_cached(page)}
        assert left == set("xydczba"[num_pages:])


def test_part_of_a_long_run_is_evicted_not_all_of_it() -> None:
    told = Story()
    use("abcdefgh")(told)
    assert told.cache.evict(3) == 3
    tokens = np.repeat(np.frombuffer(b"abcdefgh", np.uint8).astype(np.int32), 2)
    assert told.cache.peek("story", tokens) == 10
