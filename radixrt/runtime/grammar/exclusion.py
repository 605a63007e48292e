"""Texts that are not to be generated again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.grammar.base import Matcher
from radixrt.runtime.grammar.vocabulary import Vocabulary, allowed_ids, clear_bits, count_bits

_TERMINATORS = (b",", b"}", b"]", b"\n", b" ")
"""What can follow a number or a word in JSON text."""


class Exclusion:
    """Keeps a generation from beginning with any of some texts.

    A text that follows an excluded one must leave it somewhere. It may do so anywhere, but at the
    last place where the grammar still has another way it has to; that place is looked up when the
    text is excluded.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._leave_at: dict[bytes, int] = {}

    def __bool__(self) -> bool:
        return bool(self._leave_at)

    def add(self, text: bytes, *, is_open: bool, start: Matcher) -> bool:
        """Exclude ``text``; ``is_open``: it ends with a number or a word, so only with something
        after it that ends it. ``start`` is a matcher before any text, which is not changed. False
        when the grammar has no other way at any place."""
        texts = [text + after for after in _TERMINATORS] if is_open else [text]
        self._leave_at.update(dict.fromkeys(texts, -1))
        for excluded in texts:
            self._leave_at[excluded] = self._last_fork(excluded, start.fork())
        if is_open:
            self._leave_at[text] = len(text)  # it may not end here either
        found = any(self._leave_at[excluded] >= 0 for excluded in texts)
        for excluded in texts:
            if self._leave_at[excluded] < 0:
                del self._leave_at[excluded]
        return found

    def restrict(self, bitmask: NDArray[np.int32], text: bytes) -> None:
        """Forbid the tokens that would stay with an excluded text past its last fork; ``text`` is
        what was generated so far."""
        for excluded, leave_at in self._leave_at.items():
            if not excluded.startswith(text):
                continue
            rest = excluded[len(text) :]
            keeps = leave_at - len(text)
            if not rest:
                clear_bits(bitmask, self._vocabulary.end_ids)
                continue
            if excluded + _TERMINATORS[0] in self._leave_at:
                continue  # a number or a word: what ends it is excluded by itself
            clear_bits(bitmask, self._vocabulary.starting_with(rest))
            stays = [i for i, n in self._vocabulary.within(rest) if n > keeps]
            clear_bits(bitmask, stays)

    def _last_fork(self, excluded: bytes, matcher: Matcher) -> int:
        """Return the last place in a text where the grammar allows a token that leaves it."""
        bitmask = np.zeros(-(-len(self._vocabulary) // 32), np.int32)
        last, at = -1, 0
        for token_id in self._vocabulary.encode(excluded):
            matcher.fill(bitmask)
            rest = excluded[at:]
            along = {i for i, _ in self._vocabulary.within(rest)}
            along.update(self._vocabulary.starting_with(rest).tolist())
            clear_bits(bitmask, sorted(along))
            clear_bits(bitmask, self._vocabulary.end_ids)
            if count_bits(bitmask) and len(allowed_ids(bitmask, len(self._vocabulary))):
                last = at
            if not matcher.try_advance([token_id]):
                return last
            at += len(self._vocabulary.texts[token_id])
        return last
