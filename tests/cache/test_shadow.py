"""When the learned order does worse than LRU on the sample, LRU decides."""

from __future__ import annotations

from radixrt.cache.ages import NUM_AGES
from radixrt.cache.reuse import NUM_GROUPS
from radixrt.cache.shadow import Shadow

GOOD, BAD = 0, 1


def serve(shadow: Shadow, num_rounds: int, first: int) -> None:
    """Three pages of one group come again and again, and new ones of another once each."""
    for i in range(num_rounds):
        now = float(first + i)
        for key, group in ((i % 3, GOOD), (1000 + first + i, BAD)):
            shadow.use(key, now)
            shadow.rests(key, group, now)


def worths(good: float, bad: float) -> list[list[float]]:
    table = [[0.5] * NUM_AGES for _ in range(NUM_GROUPS)]
    table[GOOD] = [good] * NUM_AGES
    table[BAD] = [bad] * NUM_AGES
    return table


def test_a_wrong_table_is_left_and_a_right_one_taken_up_again() -> None:
    shadow = Shadow(8)
    shadow.worth = worths(good=0.0, bad=1.0)
    serve(shadow, 300, 0)
    assert shadow.num_hits[0] > shadow.num_hits[1]
    assert shadow.prefers_lru
    shadow.worth = worths(good=1.0, bad=0.0)
    serve(shadow, 20_000, 300)  # what was lost fades over some thousand uses
    assert not shadow.prefers_lru


def test_both_orders_hold_no_more_than_their_share() -> None:
    shadow = Shadow(8)
    shadow.worth = worths(good=1.0, bad=0.1)
    serve(shadow, 500, 0)
    hits = list(shadow.num_hits)
    for key in range(100_000, 100_100):
        shadow.use(key, 600.0)
        shadow.rests(key, GOOD, 600.0)
    for key in range(100_000, 100_092):
        shadow.use(key, 601.0)
        shadow.rests(key, GOOD, 601.0)
    assert shadow.num_hits[0] == hits[0], "LRU remembered more than eight pages"


def test_a_page_that_is_no_longer_watched_is_no_hit() -> None:
    shadow = Shadow(8)
    shadow.worth = worths(good=1.0, bad=0.1)
    shadow.use(1, 0.0)
    shadow.rests(1, GOOD, 0.0)
    shadow.forget(1)
    shadow.use(1, 1.0)
    assert shadow.num_hits == [0, 0]
