"""The shortest way to the end of a constrained text.

Where a schema tells how JSON can end, a matcher tries that first (``completing.py``); short
patterns are spelled out (``exploring.py``). What is left is a greedy depth-first search over masks:
forced tokens are followed, then one token is tried for each first byte that the mask allows:
closing characters first, then those that the state before did not allow, which tell of progress,
rare ones before frequent ones. A state with a mask that was seen before on the way begins with what
was tried least there, so a search leaves the loops of patterns. The matcher is rolled back to where
it was.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.grammar.base import Matcher
from radixrt.runtime.grammar.completing import Completer
from radixrt.runtime.grammar.exploring import shortest_spelling
from radixrt.runtime.grammar.vocabulary import Vocabulary, allowed_ids, bits_of

LONGEST_WAY = 4096
"""Tokens of a way at which a search turns back."""

MAX_MASKS = 500
"""Masks that one search may fill."""

SECONDS = 0.2
"""Seconds of processor time that one search may take; so a busy machine finds as much."""

MOST_PROBES = 100
"""States of one search that are probed before a mask is filled."""

MOST_PROPOSALS = 64
"""States of one search for which ends are proposed."""

MOST_GROUPS = 24
"""First bytes that are tried in one state beside the closing ones."""

_PATIENCE = 16
"""How often a first byte that tells of progress is tried in a state before others are."""

_CLOSING = b'"}])>'
_COMMA = ord(",")

_LAST_BYTES = (*range(0x80, 0x100), *range(0x20), 0x20, 0x5C, 0x2C, 0x2D)
"""First bytes that seldom lead to an end soon: parts of characters, controls, blank, backslash,
comma, minus."""


def shortest_close(
    matcher: Matcher,
    vocabulary: Vocabulary,
    limit: int,
    *,
    is_json: bool = True,
    max_masks: int = MAX_MASKS,
    seconds: float = SECONDS,
    completer: Completer | None = None,
    text: bytes = b"",
) -> list[int] | None:
    """Return tokens that bring a matcher to a complete text, ``[]`` where it is complete; None
    when none of at most ``limit`` tokens was found. The matcher's state is the same afterwards.

    A way that is too long is not searched for a shorter one: with a limit on its depth a search
    would look at very many. ``is_json``: a comma may be what a value needs to go on from.
    ``completer`` proposes ends of the JSON text ``text`` that the matcher has taken.
    """
    stop_at = time.thread_time() + seconds
    if not is_json:
        explore_until = time.thread_time() + seconds / 2
        spelled = shortest_spelling(
            matcher,
            vocabulary,
            lambda _way, _allowed: [] if matcher.is_accepting else None,
            stop_at=explore_until,
        )
        if spelled is not None and len(spelled) <= limit:
            return _respelled(matcher, vocabulary, spelled)
    most = max(limit, LONGEST_WAY)
    search = _Search(matcher, vocabulary, most, is_json, max_masks, stop_at, completer, text)
    found = search.run()
    return found if found is not None and len(found) <= limit else None


def _respelled(matcher: Matcher, vocabulary: Vocabulary, way: list[int]) -> list[int]:
    """Return a way as the tokenizer spells it, where that is shorter and a way as well."""
    spelled = vocabulary.encode(vocabulary.decode(way))
    return spelled if len(spelled) < len(way) and still_closes(matcher, spelled) else way


def still_closes(matcher: Matcher, way: list[int]) -> bool:
    """Whether a way that was found earlier leads to a complete text from here."""
    if not matcher.try_advance(way):
        return False
    is_accepting = matcher.is_accepting
    matcher.rollback(len(way))
    return is_accepting


@dataclass(slots=True)
class _Choice:
    """A state on the way: how long the way was, the first bytes that its mask allows, and the
    tokens still to be tried."""

    length: int
    firsts: frozenset[int] = frozenset()
    candidates: Iterator[list[int]] = field(default_factory=lambda: iter(()))


@dataclass(slots=True)
class _Search:
    matcher: Matcher
    vocabulary: Vocabulary
    limit: int
    is_json: bool
    max_masks: int
    stop_at: float
    completer: Completer | None
    text: bytes
    way: list[int] = field(default_factory=list)
    tried: dict[int, Counter[int]] = field(default_factory=dict)
    num_masks: int = 0
    num_probes: int = 0
    num_proposals: int = 0

    def run(self) -> list[int] | None:
        choices: list[_Choice] = []
        while True:
            self._follow_forced()
            if self.matcher.is_accepting:
                found = list(self.way)
                self._back_to(0)
                return found
            if len(self.way) < self.limit:
                choice = _Choice(len(self.way))
                before = choices[-1].firsts if choices else frozenset()
                choice.candidates = self._candidates(choice, before)
                choices.append(choice)
            if not self._step(choices):
                self._back_to(0)
                return None

    def _step(self, choices: list[_Choice]) -> bool:
        """Take the next token of the last state that has one; False when none has."""
        while choices:
            self._back_to(choices[-1].length)
            for tokens in choices[-1].candidates:
                if self.matcher.try_advance(tokens):
                    self.way += tokens
                    return True
            choices.pop()
        return False

    def _follow_forced(self) -> None:
        while len(self.way) < self.limit and not self.matcher.is_accepting:
            forced = self.matcher.forced()
            if not forced or not self.matcher.try_advance(forced):
                return
            self.way += forced

    def _back_to(self, length: int) -> None:
        self.matcher.rollback(len(self.way) - length)
        del self.way[length:]

    def _firsts(self, bitmask: NDArray[np.int32]) -> frozenset[int]:
        """The bytes of the one-byte tokens that a mask allows: a cheap sign of where a state is."""
        singles = self.vocabulary.single_bytes
        allowed = singles[bits_of(bitmask, singles)]
        return frozenset(self.vocabulary.first_byte[allowed].tolist())

    def _candidates(self, choice: _Choice, before: frozenset[int]) -> Iterator[list[int]]:
        """Yield the tokens to try in a state: what is proposed, or one that is likely, found
        without a mask; then one for each first byte that the mask allows, the longest of each."""
        if self.completer is not None:
            yield from self._proposed(self.completer)
        likely = self._likely()
        if likely is not None:
            yield [likely]
        if self.num_masks >= self.max_masks or time.thread_time() > self.stop_at:
            return
        self.num_masks += 1
        bitmask = np.zeros(-(-len(self.vocabulary) // 32), np.int32)
        self.matcher.fill(bitmask)
        choice.firsts = self._firsts(bitmask)
        for token_id in self._allowed(bitmask, choice.firsts - before):
            yield [token_id]

    def _proposed(self, completer: Completer) -> Iterator[list[int]]:
        """Yield what a completer proposes: whole ends that are ones, then steps towards one."""
        if self.num_proposals >= MOST_PROPOSALS or time.thread_time() > self.stop_at:
            return
        self.num_proposals += 1
        text = self.text + self.vocabulary.decode(self.way)
        steps: list[list[int]] = []
        end = self._end(completer, text, steps)
        if end is None and completer.is_in_string(text):
            end = self._end_of_string(completer, text)
        if end is not None:
            yield end
        yield from steps

    def _end(self, completer: Completer, text: bytes, steps: list[list[int]]) -> list[int] | None:
        """Return an end of ``text`` that is proposed and is one; ``steps`` gets what is proposed
        and goes on with it only."""
        for proposed, is_whole in completer.proposals(text):
            tokens = self.vocabulary.encode(proposed)
            if is_whole and still_closes(self.matcher, tokens):
                return tokens
            if tokens and not is_whole:
                steps.append(tokens)
        return None

    def _end_of_string(self, completer: Completer, text: bytes) -> list[int] | None:
        """Return an end of a text in whose last string something has to come before its quote."""
        quote = self.vocabulary.json_probes[1]

        def end(way: list[int], allowed: frozenset[int]) -> list[int] | None:
            more = self.vocabulary.decode(way)
            if quote not in allowed and b'"' not in more:
                return None
            return self._end(completer, text + more, [])

        now = time.thread_time()
        half = now + (self.stop_at - now) / 2  # the rest is for other ways
        found = shortest_spelling(self.matcher, self.vocabulary, end, stop_at=half)
        return None if found is None else _respelled(self.matcher, self.vocabulary, found)

    def _likely(self) -> int | None:
        """Return what closes a JSON string, where letters and a quote are allowed, or an object or
        array. Probing a token costs a fraction of a mask."""
        self.num_probes += 1
        if self.num_probes > MOST_PROBES:
            return None
        letter, quote, brace, bracket = self.vocabulary.json_probes
        if self._allows(quote):
            return quote if self._allows(letter) else None
        return next((i for i in (brace, bracket) if self._allows(i)), None)

    def _allows(self, token_id: int) -> bool:
        return token_id >= 0 and self.matcher.allows(token_id)

    def _allowed(self, bitmask: NDArray[np.int32], new: frozenset[int]) -> Iterator[int]:
        tried = self.tried.setdefault(hash(bitmask.tobytes()), Counter())
        texts = self.vocabulary.texts
        closers = self.vocabulary.closers
        by_byte: dict[int, int] = {}
        for token_id in closers[bits_of(bitmask, closers)].tolist():
            by_byte.setdefault(texts[token_id][0], token_id)
        closing = [by_byte[byte] for byte in _CLOSING if byte in by_byte]

        def tiredness(token_id: int) -> int:
            byte = texts[token_id][0]
            return tried[byte] // (_PATIENCE if byte in new else 1)

        for token_id in closing:
            if tiredness(token_id) == 0:
                tried[texts[token_id][0]] += 1
                yield token_id
                by_byte[texts[token_id][0]] = -1
        rest = [i for i in closing if by_byte[texts[i][0]] >= 0]
        for token_id in sorted([*rest, *self._groups(bitmask, by_byte, new)], key=tiredness):
            tried[texts[token_id][0]] += 1
            yield token_id

    def _groups(
        self, bitmask: NDArray[np.int32], known: dict[int, int], new: frozenset[int]
    ) -> list[int]:
        first_byte, lengths = self.vocabulary.first_byte, self.vocabulary.lengths
        ids = allowed_ids(bitmask, len(self.vocabulary))
        ids = ids[first_byte[ids] >= 0]
        firsts = first_byte[ids]
        counts = np.bincount(firsts, minlength=256)
        present = np.flatnonzero(counts).tolist()
        order = sorted(
            (byte for byte in present if byte not in known),
            key=lambda byte: (
                byte not in new,
                byte != _COMMA if byte in new and self.is_json else byte in _LAST_BYTES,
                int(counts[byte]),
            ),
        )
        groups = [ids[firsts == byte] for byte in order[:MOST_GROUPS]]
        return [int(group[np.argmax(lengths[group])]) for group in groups]
