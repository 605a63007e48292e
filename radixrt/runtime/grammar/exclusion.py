"""Texts that are not to be generated again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.grammar.base import Matcher
from radixrt.runtime.grammar.vocabulary import Vocabulary, clear_bits, count_bits

_TERMINATORS = (b",", b"}", b"]", b"\n", b" ")
"""What can follow a number or a word in JSON text."""

_CLOSED = (b'"', b"}", b"]")
"""What a value in JSON text ends with that is neither."""


class Exclusion:
    """Keeps a generation from beginning with any of some texts.

    A text that follows an excluded one must leave it somewhere. It may do so anywhere, but at the
    last place where the grammar still has a way that none of the excluded texts goes it has to;
    these places are looked up whenever a text is excluded.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._leave_at: dict[bytes, int] = {}
        self._whole: set[bytes] = set()

    def __bool__(self) -> bool:
        return bool(self._leave_at)

    def add(self, text: bytes, start: Matcher) -> bool:
        """Exclude ``text``; where it ends with a number or a word, only with something after it
        that ends it. ``start`` is a matcher before any text, which is not changed. False when the
        grammar has no other way at any place."""
        is_open = text[-1:] not in _CLOSED
        texts = [text + after for after in _TERMINATORS] if is_open else [text]
        self._leave_at.update({excluded: len(excluded) for excluded in texts})
        # What was a way out of one text may be another one that is excluded now.
        is_settled = False
        while not is_settled:
            is_settled = True
            for excluded, leave_at in self._leave_at.items():
                last = self._last_fork(excluded, start)
                if last != leave_at:
                    self._leave_at[excluded] = last
                    is_settled = False
        if is_open:
            self._whole.add(text)
        return any(self._leave_at[excluded] >= 0 for excluded in texts)

    def restrict(self, bitmask: NDArray[np.int32], text: bytes) -> None:
        """Forbid the tokens that would stay with an excluded text past its last fork; ``text`` is
        what was generated so far."""
        if text in self._whole:
            clear_bits(bitmask, self._vocabulary.end_ids)
        for excluded, leave_at in self._leave_at.items():
            if excluded.startswith(text):
                self._keep_off(bitmask, excluded, len(text), leave_at)

    def _keep_off(
        self, bitmask: NDArray[np.int32], excluded: bytes, at: int, leave_at: int
    ) -> None:
        """Forbid the tokens after ``excluded[:at]`` that stay with it past ``leave_at``."""
        rest = excluded[at:]
        if not rest:
            clear_bits(bitmask, self._vocabulary.end_ids)
            return
        clear_bits(bitmask, self._vocabulary.starting_with(rest))
        clear_bits(bitmask, [i for i, n in self._vocabulary.within(rest) if n > leave_at - at])

    def _last_fork(self, excluded: bytes, start: Matcher) -> int:
        """Return the last place in a text, no later than it was known to be, where the grammar
        allows a token that leaves it for no dead end; -1 when there is none."""
        token_ids = self._vocabulary.encode(excluded)
        places = [0]
        for token_id in token_ids[:-1]:
            places.append(places[-1] + len(self._vocabulary.texts[token_id]))
        bitmask = np.zeros(-(-len(self._vocabulary) // 32), np.int32)
        for index in reversed(range(len(places))):
            at = places[index]
            matcher = start.fork()
            if at > self._leave_at[excluded] or not matcher.try_advance(token_ids[:index]):
                continue
            matcher.fill(bitmask)
            for other, leave_at in self._leave_at.items():
                if other.startswith(excluded[:at]):
                    self._keep_off(bitmask, other, at, at if other == excluded else leave_at)
            clear_bits(bitmask, self._vocabulary.end_ids)
            if count_bits(bitmask):
                return at
        return -1
