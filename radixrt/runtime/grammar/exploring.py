"""The shortest spelling of the rest of a pattern.

A breadth-first search by tokens of single bytes. What only repeats is not followed: of the ways
that have come equally far, one for each set of bytes that can follow is. A byte is a step on the
way if it changes that set, or the mask. So the search finds the way out of a pattern's loops, which
a greedy search walks on in. A state costs a tenth of a millisecond, two masks where a byte does not
change the set.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.grammar.base import Matcher
from radixrt.runtime.grammar.vocabulary import Vocabulary

MAX_STATES = 400
"""States that one search may look at."""

_CLASSES = tuple(
    frozenset(range(first, last + 1))
    for first, last in ((0x30, 0x39), (0x61, 0x7A), (0x41, 0x5A), (0x80, 0xFF), (0x00, 0x1F))
)
"""Digits, small and capital letters, parts of characters, controls: of these one byte stands for
all that are allowed in a state, if there are more than ``_FEW``."""

_FEW = 4

End = Callable[[list[int], frozenset[int]], list[int] | None]


def shortest_spelling(
    matcher: Matcher, vocabulary: Vocabulary, end: End, *, stop_at: float = float("inf")
) -> list[int] | None:
    """Return tokens after which ``end`` returns some, and those; None when none were found.

    ``end(way, allowed)`` is asked in every state, which the matcher is in and stays in; ``allowed``
    are the tokens of one byte that can follow. ``stop_at`` is in seconds of the thread's processor
    time. The matcher's state is the same afterwards.
    """
    first = _State([], 0, _singles(matcher, vocabulary))
    states = deque([first])
    seen = {(0, first.allowed)}
    num_left = MAX_STATES
    while states and num_left and time.thread_time() < stop_at:
        num_left -= 1
        state = states.popleft()
        if not state.is_entered_by(matcher):
            continue
        found = end(state.way, state.allowed)
        if found is None:
            for after in _after(state, matcher, vocabulary):
                if (after.progress, after.allowed) not in seen:
                    seen.add((after.progress, after.allowed))
                    states.append(after)
        matcher.rollback(len(state.way))
        if found is not None:
            return state.way + found
    return None


class _State(NamedTuple):
    """Where a matcher is after ``way``, in ``progress`` steps; ``allowed`` can follow."""

    way: list[int]
    progress: int
    allowed: frozenset[int]

    def is_entered_by(self, matcher: Matcher) -> bool:
        return not self.way or matcher.try_advance(self.way)


def _after(state: _State, matcher: Matcher, vocabulary: Vocabulary) -> Iterator[_State]:
    """Yield the states after one byte, and what it forces; the matcher is in ``state``."""
    mask: NDArray[np.int32] | None = None
    is_repeating = False
    for token_id in _chosen(vocabulary, state.allowed):
        tokens = [token_id]
        if not matcher.try_advance(tokens):
            continue
        forced = matcher.forced()
        if forced and matcher.try_advance(forced):
            tokens += forced
        allowed = _singles(matcher, vocabulary)
        is_step = allowed != state.allowed or len(tokens) > 1
        if not is_step and not is_repeating:
            there = _mask(matcher, vocabulary)
            matcher.rollback(1)
            mask = _mask(matcher, vocabulary) if mask is None else mask
            matcher.try_advance(tokens)
            is_step = not np.array_equal(mask, there)
            is_repeating = not is_step  # and so are others that change nothing
        matcher.rollback(len(tokens))
        if is_step:
            yield _State([*state.way, *tokens], state.progress + 1, allowed)


def _mask(matcher: Matcher, vocabulary: Vocabulary) -> NDArray[np.int32]:
    bitmask = np.zeros(-(-len(vocabulary) // 32), np.int32)
    matcher.fill(bitmask)
    return bitmask


def _singles(matcher: Matcher, vocabulary: Vocabulary) -> frozenset[int]:
    """Return the tokens of one byte that can follow, of those beyond ASCII if no others can."""
    printable, others = vocabulary.printable_bytes
    found = frozenset(token_id for token_id in printable if matcher.allows(token_id))
    return found or frozenset(token_id for token_id in others if matcher.allows(token_id))


def _chosen(vocabulary: Vocabulary, allowed: frozenset[int]) -> list[int]:
    """Return what to go on with."""
    chosen: list[int] = []
    by_class: dict[frozenset[int], list[int]] = {}
    for token_id in sorted(allowed):
        byte = vocabulary.texts[token_id][0]
        kind = next((kind for kind in _CLASSES if byte in kind), None)
        if kind is None:
            chosen.append(token_id)
        else:
            by_class.setdefault(kind, []).append(token_id)
    for token_ids in by_class.values():
        chosen += token_ids[: 1 if len(token_ids) > _FEW else _FEW]
    return chosen
