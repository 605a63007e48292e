"""Ways to the end of a text that were found before, for texts under the same constraint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from radixrt.runtime.grammar.vocabulary import Vocabulary

CAPACITY = 4096
"""Transitions that are remembered; when there are more, all are forgotten."""

MOST_CANDIDATES = 4
"""Ways that are remembered of a transition; the newest are tried first."""

_SHOWN = 6
"""Tokens of a way that tell it from others."""

Transition = tuple[int, int, tuple[int, ...]]


class Ways:
    """Remembers by which way a text could end after a token, given the way that it had before.

    What is remembered are guesses: two texts with the same way may still be in different states, so
    who asks lets the matcher try each one, which costs a hundredth of a search. Owned by the loop.
    """

    def __init__(self) -> None:
        self._found: dict[Transition, list[tuple[int, ...]]] = {}

    def guesses(
        self, before: Sequence[int], token_id: int, vocabulary: Vocabulary
    ) -> Iterator[Sequence[int]]:
        """Yield ways that may lead to the end after ``token_id``, where ``before`` led there before
        it: first what is left of ``before``, if the token spells its beginning."""
        text, piece = vocabulary.decode(before), vocabulary.texts[token_id]
        if piece and text.startswith(piece):
            yield vocabulary.encode(text[len(piece) :])
        yield from reversed(self._found.get(_key(before, token_id), ()))

    def add(self, before: Sequence[int], token_id: int, way: Sequence[int]) -> None:
        """Remember what a search has found."""
        if len(self._found) >= CAPACITY:
            self._found.clear()
        known = self._found.setdefault(_key(before, token_id), [])
        known.append(tuple(way))
        del known[:-MOST_CANDIDATES]


def _key(before: Sequence[int], token_id: int) -> Transition:
    return token_id, len(before), tuple(before[:_SHOWN])
