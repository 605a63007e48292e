"""What tokens add to a JSON string that is being written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ENDED = -1
"""The state after the quote that ends a string."""

NUM_STATES = 5
"""0 between two characters of a string (or inside one of several bytes), 1 after a backslash or
before the last digit of an escape, up to 4 with all four digits of an escape to come."""

_QUOTE, _BACKSLASH, _U = 0x22, 0x5C, 0x75


class Effect(NamedTuple):
    """What every token does to a string in one state, [V]: it adds ``units`` characters before a
    quote ends the string (an escape counts as one, a surrogate pair as two), and leaves it in the
    state ``after``. Views of arrays: reading a single item of those takes three times as long."""

    units: memoryview
    after: memoryview


class StringTokens:
    """Look-ups over the tokens with the bytes ``texts``, built when they are first used."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._texts = texts
        self._effects: dict[int, Effect] = {}
        self._within: dict[tuple[int, int], NDArray[np.int32]] = {}

    def effect(self, state: int) -> Effect:
        """Return what tokens do to a string in a state other than ``ENDED``."""
        if state not in self._effects:
            self._effects[state] = self._run(state)
        return self._effects[state]

    def within(self, state: int, left: int) -> NDArray[np.int32] | None:
        """Return the tokens that add at most ``left`` characters to a string, as a bit mask int32
        [ceil(V / 32)] that is not to be changed; None for all of them."""
        units = self.effect(state).units
        if left >= self.most:
            return None
        key = state, max(left, 0)
        if key not in self._within:
            bits = np.zeros(-(-len(units) // 32) * 4, np.uint8)
            packed = np.packbits(np.asarray(units) <= key[1], bitorder="little")
            bits[: len(packed)] = packed
            self._within[key] = bits.view(np.int32)
        return self._within[key]

    @cached_property
    def most(self) -> int:
        """A bound of the characters that a token adds."""
        return max(map(len, self._texts), default=0)

    @cached_property
    def reopening(self) -> NDArray[np.int32]:
        """Tokens that may end a string and begin to write another one."""
        return self._with_text_after_quote(2)

    @cached_property
    def opening(self) -> NDArray[np.int32]:
        """Tokens that may begin a string and write some of it."""
        return self._with_text_after_quote(1)

    @cached_property
    def most_opening(self) -> int:
        """A bound of the characters that one of these writes in one string."""
        texts = [self._texts[i] for i in self.opening.tolist()]
        return max((len(part) for text in texts for part in text.split(b'"')[1:]), default=0)

    def _with_text_after_quote(self, num_quotes: int) -> NDArray[np.int32]:
        found = [
            token_id
            for token_id, text in enumerate(self._texts)
            if b'"' in text and text.split(b'"', num_quotes)[num_quotes:] not in ([], [b""])
        ]
        return np.array(found, np.int32)

    def _run(self, state: int) -> Effect:
        """Let all tokens run through the automaton of a string at once, byte by byte."""
        lengths = np.array([len(text) for text in self._texts], np.int64)
        by_length = np.argsort(-lengths, kind="stable")
        flat = np.frombuffer(b"".join(self._texts), np.uint8)
        starts = (np.cumsum(lengths) - lengths)[by_length]
        num_longer = np.searchsorted(-lengths[by_length], -np.arange(self.most), side="left")
        units = np.zeros(len(lengths), np.int16)
        states = np.full(len(lengths), state, np.int8)
        following, counted = _automaton()
        for at, n in enumerate(num_longer.tolist()):
            byte, now = flat[starts[:n] + at], states[:n]
            units[:n] += counted[now, byte]
            states[:n] = following[now, byte]
        back = np.argsort(by_length)
        return Effect(units[back].data, states[back].data)


@cache
def _automaton() -> tuple[NDArray[np.int8], NDArray[np.int16]]:
    """Return the state after a byte and the characters that it adds, [state, byte]; the last row,
    which -1 means too, is ``ENDED``."""
    following = np.zeros((NUM_STATES + 1, 256), np.int8)
    counted = np.zeros((NUM_STATES + 1, 256), np.int16)
    counted[0] = (np.arange(256) & 0xC0) != 0x80
    counted[0, _QUOTE] = 0
    following[0, _BACKSLASH], following[0, _QUOTE] = 1, ENDED
    following[1, _U] = 4
    for state in range(2, NUM_STATES):
        following[state] = state - 1
    following[ENDED] = ENDED
    return following, counted
