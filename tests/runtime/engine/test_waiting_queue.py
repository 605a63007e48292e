"""The order in which waiting requests are offered."""

from __future__ import annotations

import numpy as np
from engine_harness import params

from radixrt.runtime.scheduling.queue import WaitingQueue
from radixrt.runtime.scheduling.request import Request


def request(seq: int, match_hint: int = 0, num_retractions: int = 0) -> Request:
    made = Request(
        id=seq,
        branch=seq,
        namespace="",
        token_ids=np.zeros(5, np.int32),
        prompt_len=5,
        sampling=params(),
        seq=seq,
        logits_from=4,
    )
    made.match_hint = match_hint
    made.num_retractions = num_retractions
    return made


def order(queue: WaitingQueue) -> list[int]:
    return [offered.seq for offered in queue.offers()]


def test_the_longest_cached_prefix_comes_first_then_the_oldest() -> None:
    queue = WaitingQueue(10)
    for seq, hint in ((1, 0), (2, 30), (3, 0), (4, 30), (5, 90)):
        queue.add(request(seq, hint))
    assert order(queue) == [5, 2, 4, 1, 3]


def test_resumed_requests_come_before_all_others() -> None:
    queue = WaitingQueue(10)
    queue.add(request(3, 90))
    queue.add(request(2, 5, num_retractions=1))
    queue.add(request(1, 5, num_retractions=1))
    assert order(queue) == [1, 2, 3]
    assert len(queue) == 3


def test_who_was_overtaken_often_enough_comes_first() -> None:
    queue = WaitingQueue(3)
    cold = request(1)
    queue.add(cold)
    for seq in range(2, 5):
        assert not queue.is_due(cold)
        hit = request(seq, 50)
        queue.add(hit)
        assert order(queue) == [seq, 1]
        queue.admitted(hit)
    queue.add(request(5, 50))
    assert queue.is_due(cold)
    assert order(queue) == [1, 5]


def test_waiting_behind_older_requests_is_not_being_overtaken() -> None:
    queue = WaitingQueue(2)
    olds = [request(seq, 10) for seq in range(1, 6)]
    for old in olds:
        queue.add(old)
    last = request(6)
    queue.add(last)
    for old in olds:
        queue.admitted(old)
    assert not queue.is_due(last)


def test_held_requests_are_offered_when_their_prefix_is_there() -> None:
    queue = WaitingQueue(10)
    provider, near, far = request(1), request(2), request(3)
    queue.add(near)
    queue.add(far)
    queue.hold(near, provider, 20)
    queue.hold(far, provider, 40)
    assert order(queue) == []
    queue.let_go(provider, 20)
    assert order(queue) == [2]
    assert near.match_hint == 20
    queue.remove(far)
    assert provider.followers == []
    assert len(queue) == 1


def test_offers_go_on_when_one_is_taken_or_held() -> None:
    queue = WaitingQueue(10)
    requests = [request(seq, seq) for seq in range(1, 7)]
    for waiting in requests:
        queue.add(waiting)
    seen = []
    for offered in queue.offers():
        seen.append(offered.seq)
        if offered.seq % 3 == 0:
            queue.admitted(offered)
        elif offered.seq % 3 == 1:
            queue.hold(offered, requests[5], 9)
    assert seen == [6, 5, 4, 3, 2, 1]
    assert order(queue) == [5, 2]


def test_a_computed_prefix_is_wanted_by_those_that_begin_with_it() -> None:
    queue = WaitingQueue(10)
    provider, other = request(1), request(2)
    other.token_ids = np.array([7, 8, 9, 1, 1], np.int32)
    queue.add(other)
    tokens = np.array([7, 8, 9, 5], np.int32)
    assert queue.wants(provider, tokens, 2)
    assert not queue.wants(provider, tokens, 3)
    assert not queue.wants(provider, np.array([6, 8, 9], np.int32), 2)
    other.namespace = "tenant"
    assert not queue.wants(provider, tokens, 2)
    queue.hold(other, provider, 3)
    assert queue.wants(provider, tokens, 2)
