"""Stop strings and stop patterns over a text that grows token by token.

A match ends the text before it. Text that could be the beginning of a match is held back until
more text decides. A pattern's match may span ``WINDOW`` characters; text older than that is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from radixrt.errors import InvalidArgument

WINDOW = 1024
"""Characters a match of a pattern can be spread over."""

MAX_PATTERN_LEN = 4096
"""Characters a pattern can have."""

SEARCH_TIMEOUT_S = 0.05
"""Seconds one search may take; patterns that need more are refused when they do."""


@dataclass(frozen=True, slots=True)
class StopMatch:
    """``matched`` (a stop string, or a pattern's text) begins at character ``start``."""

    start: int
    matched: str


def compile_patterns(patterns: Sequence[str]) -> tuple[regex.Pattern[str], ...]:
    """Return compiled stop patterns; ``InvalidArgument`` for one that is none."""
    compiled = []
    for pattern in patterns:
        if len(pattern) > MAX_PATTERN_LEN:
            raise InvalidArgument(
                "stop_regex", pattern, f"use at most {MAX_PATTERN_LEN} characters"
            )
        try:
            built = regex.compile(pattern)
            empty = built.search("", timeout=SEARCH_TIMEOUT_S)
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise InvalidArgument("stop_regex", pattern, f"not a pattern: {error}") from None
        except TimeoutError:
            raise _too_slow(pattern) from None
        if empty is not None:
            raise InvalidArgument(
                "stop_regex", pattern, "it matches the empty text; use one that needs a character"
            )
        compiled.append(built)
    return tuple(compiled)


class StopMatcher:
    """Looks for the first match in a growing text."""

    def __init__(self, stops: Sequence[str], patterns: Sequence[regex.Pattern[str]]) -> None:
        self._stops = tuple(stops)
        self._patterns = tuple(patterns)
        self._longest = max((len(stop) for stop in stops), default=0)

    def search(self, text: str, seen: int, begin: int = 0) -> StopMatch | None:
        """Return the first match that starts at ``begin`` or later.

        ``seen`` characters of ``text`` had no match before. Of two matches at the same place the
        longer stop string wins. Raises ``InvalidArgument`` for a pattern that takes too long.
        """
        best: StopMatch | None = None
        best_len = 0
        for stop in self._stops:
            start = text.find(stop, max(begin, seen - self._longest + 1))
            if start >= 0 and (best is None or (start, -len(stop)) < (best.start, -best_len)):
                best, best_len = StopMatch(start, stop), len(stop)
        for pattern in self._patterns:
            found = self._search_pattern(pattern, text, max(begin, seen - WINDOW), partial=False)
            if found is not None and (best is None or found < best.start):
                best = StopMatch(found, pattern.pattern)
        return best

    def safe_len(self, text: str, begin: int = 0) -> int:
        """Return how many characters of ``text`` (which has no match) no future match can take."""
        safe = len(text)
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text) - begin), 0, -1):
                if text.endswith(stop[:length]):
                    safe = min(safe, len(text) - length)
                    break
        for pattern in self._patterns:
            start = max(begin, len(text) - WINDOW)
            found = self._search_pattern(pattern, text, start, partial=True)
            if found is not None:
                safe = min(safe, found)
        return safe

    def _search_pattern(
        self, pattern: regex.Pattern[str], text: str, start: int, *, partial: bool
    ) -> int | None:
        try:
            found = pattern.search(text, start, partial=partial, timeout=SEARCH_TIMEOUT_S)
        except TimeoutError:
            raise _too_slow(pattern.pattern) from None
        return None if found is None else found.start()


def _too_slow(pattern: str) -> InvalidArgument:
    return InvalidArgument(
        "stop_regex", pattern, f"a search took over {SEARCH_TIMEOUT_S} s; use a simpler pattern"
    )
