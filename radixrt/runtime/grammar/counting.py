"""Limits that are counted while a text grows, and the bounds of single fields."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.grammar.json_path import JsonPath
from radixrt.runtime.grammar.json_text import matches
from radixrt.runtime.grammar.limits import CountLimit
from radixrt.runtime.grammar.vocabulary import Vocabulary, allowed_ids, clear_bits

_NEAR = 8
"""So close to the end of an array every token with a comma is looked at in full."""


class Counter:
    """Takes tokens out of masks that would pass a counted limit."""

    def __init__(self, limits: Sequence[CountLimit], vocabulary: Vocabulary) -> None:
        self._limits = limits
        self._vocabulary = vocabulary

    def restrict(self, bitmask: NDArray[np.int32], at: JsonPath) -> None:
        """Forbid what would make a string or an array too long; ``at`` is where the text is."""
        for limit in self._limits:
            if limit.keyword == "maxLength":
                self._restrict_string(bitmask, at, limit)
            else:
                self._restrict_array(bitmask, at, limit)

    def _restrict_string(self, bitmask: NDArray[np.int32], at: JsonPath, limit: CountLimit) -> None:
        if not (at.in_string and not at.is_key and matches(limit.pointer, at.path)):
            return
        left = limit.limit - at.length
        if left < self._vocabulary.longest:
            clear_bits(
                bitmask, np.flatnonzero(self._vocabulary.string_units > max(left, 0)).tolist()
            )

    def _restrict_array(self, bitmask: NDArray[np.int32], at: JsonPath, limit: CountLimit) -> None:
        level = at.levels[-1] if at.levels else None
        if level is None or not level.is_array or at.in_string:
            return
        if not matches(limit.pointer, at.path[:-1]):
            return
        assert isinstance(level.key, int)
        if limit.limit - 1 - level.key > _NEAR:
            return
        depth, texts = len(at.levels), self._vocabulary.texts
        passing = []
        for token_id in allowed_ids(bitmask, len(self._vocabulary)).tolist():
            if b"," not in texts[token_id]:
                continue
            after = at.copy()
            after.feed(texts[token_id])
            if len(after.levels) < depth:
                continue
            index = after.levels[depth - 1].key
            if isinstance(index, int) and index >= limit.limit:
                passing.append(token_id)
        clear_bits(bitmask, passing)
