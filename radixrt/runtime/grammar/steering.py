"""Steering a constrained text to its end within its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from radixrt.runtime.grammar.base import GrammarError, Matcher
from radixrt.runtime.grammar.closing import shortest_close, still_closes
from radixrt.runtime.grammar.compiled import Compiled
from radixrt.runtime.grammar.written import Written

NEAR_THE_END = 64
"""With more tokens left than this, and several times what closing takes, nothing is looked up."""

FAR_FROM_THE_END = 4
"""How many times the tokens of the last known way to the end count as far."""

BYTES_A_TOKEN = 2
"""Of the end of a JSON text, at least on average."""

SEARCH_S = 0.03
"""Seconds of processor time that the loop may spend on one search for the end; then the last known
way is taken."""


@dataclass(slots=True, eq=False)
class Steering:
    """Knows how a text can end, and keeps it from growing until it cannot.

    ``way`` are tokens that lead ``matcher`` to the end, or did some tokens ago; None when none is
    known. ``is_on``: the text has to end within ``max_tokens`` and has a known end; else it comes
    to one by itself, or does not. The matcher may be ahead of the text ``written``, as each method
    says.
    """

    compiled: Compiled
    matcher: Matcher
    written: Written
    max_tokens: int
    is_on: bool
    way: list[int] | None = None

    def far_until(self) -> int:
        """Return how many tokens the text has to have before another one may be one too many."""
        last = self.max_tokens - 1
        if not self.is_on:
            return last
        return 0 if self.way is None else last - self._near(self.way)

    def goes_along(self, token_id: int) -> bool:
        """Whether a token is the next one of the way; the rest is the way then."""
        way = self.way
        if not way or way[0] != token_id:
            return False
        self.way = way[1:]
        return True

    def end_instead(self, token_id: int) -> list[int] | None:
        """Return the tokens to the end in place of one that the matcher has just accepted, when the
        text could not be closed any more after it: the matcher has accepted them then. None when it
        could.

        Raises ``GrammarError`` when no end is found.
        """
        if not self.is_on or self.goes_along(token_id):
            return None
        left = self.max_tokens - len(self.written.token_ids) - 1
        if self.way is not None and left > self._near(self.way):
            return None
        if self.matcher.is_finished:
            return None
        found = self._way_after(token_id, left)
        if found is not None:
            self.way = found
            return None
        self.matcher.rollback(1)
        way = self._way_from_here(left + 1)
        for other in way:
            self.matcher.advance(other)
        return way

    def ends_after(self, forced: list[int]) -> bool:
        """Whether the text can still be closed after tokens that the matcher has just accepted."""
        way = self.way
        if way is None or not self.is_on:
            return True
        left = self.max_tokens - len(self.written.token_ids) - len(forced)
        rest = self._rest(way, forced)
        if left > self._near(way):
            self.way = way if rest is None else rest
            return True
        if rest is None or len(rest) > left or not still_closes(self.matcher, rest):
            rest = self.search(left, self.written.vocabulary.decode(forced))
        if rest is None:
            return False
        self.way = rest
        return True

    def search(self, limit: int, piece: bytes = b"") -> list[int] | None:
        """Return a way to the end of at most ``limit`` tokens; None when none was found. ``piece``
        is what the matcher has accepted beyond the text."""
        compiled, written = self.compiled, self.written
        return shortest_close(
            self.matcher,
            written.vocabulary,
            limit,
            is_json=compiled.is_json or compiled.tools is not None,
            seconds=SEARCH_S,
            completer=None if written.is_healing else compiled.completer,
            text=written.bound_bytes + piece,
        )

    def _near(self, known: Sequence[int]) -> int:
        """Return with how many tokens left, at most, another one may be one too many, where
        ``known`` was a way to the end."""
        outlook = self.compiled.outlook
        if outlook is not None and outlook.most_left:
            most = len(known) + outlook.most_left // BYTES_A_TOKEN
        else:
            most = FAR_FROM_THE_END * max(len(known), len(self.compiled.shortest or ()))
        return max(NEAR_THE_END, most)

    def _rest(self, way: list[int], token_ids: list[int]) -> list[int] | None:
        """Return what is left of a way after tokens that begin it, if they do."""
        if way[: len(token_ids)] == token_ids:
            return way[len(token_ids) :]
        vocabulary = self.written.vocabulary
        text, begun = vocabulary.decode(way), vocabulary.decode(token_ids)
        return vocabulary.encode(text[len(begun) :]) if text.startswith(begun) else None

    def _way_after(self, token_id: int, limit: int) -> list[int] | None:
        """Return a way to the end of at most ``limit`` tokens after a token that was just accepted:
        the one from before it, one that was found for another text, or a new one.

        None as well where the ways that are known are all longer: a search takes long, and the text
        can still be closed without the token.
        """
        known, vocabulary = self.way, self.written.vocabulary
        piece = vocabulary.texts[token_id]
        if known is None:
            return self.search(limit, piece)
        is_too_long = False
        ways = self.compiled.ways
        for guess in (known, *ways.guesses(known, token_id, vocabulary)):
            way = [*guess]
            if still_closes(self.matcher, way):
                if len(way) <= limit:
                    return way
                is_too_long = True
        if is_too_long and len(known) <= limit + 1:
            return None
        found = self.search(limit, piece)
        if found is not None:
            ways.add(known, token_id, found)
        return found

    def _way_from_here(self, limit: int) -> list[int]:
        """Return a way to the end of at most ``limit`` tokens."""
        if self.matcher.is_accepting:
            return []
        way = self.way
        if way is not None and len(way) <= limit and still_closes(self.matcher, way):
            return way
        found = self.search(limit)
        if found is None:
            raise GrammarError(
                f"the text cannot be closed within max_tokens={self.max_tokens}; allow more tokens"
            )
        return found
