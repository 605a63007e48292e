"""A matcher that counts what its automaton does not.

As an automaton a ``maxLength`` takes a state a character. In each of them other tokens are too
long, so none of the engine's prepared masks applies: close to the limit a mask takes a hundred
times as long as one of an unlimited string, and hardly any state is met twice. So the engine gets
the string without its limit, and its masks are cut by one of a few masks: the tokens that add at
most so many characters. Long arrays are counted for the sake of the automaton's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from radixrt.runtime.grammar.json_path import JsonPath
from radixrt.runtime.grammar.json_text import Path
from radixrt.runtime.grammar.limits import UNLIMITED, CountLimit
from radixrt.runtime.grammar.llguidance import LlguidanceMatcher
from radixrt.runtime.grammar.string_tokens import ENDED, IN_CHARACTER, ends_in_character
from radixrt.runtime.grammar.vocabulary import Int32, Vocabulary, allowed_ids, bits_of, clear_bits

_NEAR = 8
"""So close to the end of an array every token with a comma is looked at in full."""

MOST_NODES = 2_000
MOST_NOTES = 10_000
"""Places that are known under one constraint, and what tokens lead to from there."""

MOST_MASKS = 32
"""Places of one constraint whose masks are kept; each is a bit a token."""


class Limits:
    """Counted limits by the places that they are about."""

    def __init__(self, limits: Sequence[CountLimit], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.strings = vocabulary.strings
        self._strings: dict[str | None, Any] = {}
        self._arrays: dict[str | None, Any] = {}
        for limit in limits:
            node = self._strings if limit.keyword == "maxLength" else self._arrays
            for key in limit.pointer.split("/")[1:]:
                node = node.setdefault(key.replace("~1", "/").replace("~0", "~"), {})
            node.setdefault(None, []).append(limit)
        lengths = [limit.limit for limit in limits if limit.keyword == "maxLength"]
        self.has_arrays = len(lengths) < len(limits)
        self.has_short_strings = min(lengths, default=UNLIMITED) < self.strings.most_opening
        self.has_small = self.has_arrays or self.has_short_strings
        self.num_masks = 0
        self._nodes: dict[tuple[Any, ...], Node] = {}
        self._num_notes = 0
        self.strings.build()  # now, by whoever compiles, not by the loop

    def of_string(self, path: Path) -> tuple[int, int]:
        """Return how many characters the string at a path may have, and from how many on masks
        inside of it are equal (-1: not known)."""
        found = _found(self._strings, path)
        return _least(found), found[0].least if len(found) == 1 else -1

    def of_array(self, path: Path) -> int:
        """Return how many items the array at a path may have."""
        return _least(_found(self._arrays, path))

    def node(self, path: JsonPath, skipped: int = 0) -> Node:
        """Return the node of a place, which keeps ``path``."""
        key = *path.state(), skipped
        known = self._nodes.get(key)
        if known is None:
            known = Node(path, *self.of_string(path.path), skipped)
            if len(self._nodes) < MOST_NODES:
                self._nodes[key] = known
        return known

    def remember(self, node: Node, key: tuple[int, int], place: Place) -> None:
        """Note what a token leads to from a node, unless there are too many notes."""
        if self._num_notes < MOST_NOTES:
            self._num_notes += 1
            node.following[key] = place

    def exceeds(self, at: JsonPath) -> bool:
        """Whether the value that is being written is larger than it may be."""
        if at.in_string and not at.is_key and at.length > self.of_string(at.path)[0]:
            return True
        level = at.levels[-1] if at.levels else None
        if not self.has_arrays or level is None or not isinstance(level.key, int):
            return False
        return level.key >= self.of_array(at.path[:-1])


def _found(tree: dict[str | None, Any], path: Path) -> list[CountLimit]:
    nodes = [tree]
    for part in path:
        nodes = [node[key] for node in nodes for key in (str(part), "*") if key in node]
    return [limit for node in nodes for limit in node.get(None, ())]


def _least(limits: list[CountLimit]) -> int:
    return min((limit.limit for limit in limits), default=UNLIMITED)


class Node:
    """A place in texts, shared by those that come to it: at ``path``, which nobody changes;
    ``skipped`` bytes are still to come before the JSON. What tokens lead to is remembered, so texts
    of one schema seldom have to be read.

    A string there may have ``limit`` characters; from ``least`` characters on (-1: never) the
    engine's mask between two of them is always ``mask``, int32 [ceil(V / 32)], once it is known.
    """

    __slots__ = ("following", "least", "limit", "mask", "path", "skipped")

    def __init__(self, path: JsonPath, limit: int, least: int, skipped: int) -> None:
        self.path = path
        self.limit = limit
        self.least = least
        self.skipped = skipped
        self.mask: Int32 | None = None
        self.following: dict[tuple[int, int], Place] = {}


class Place(NamedTuple):
    """Where a text is: at ``node``, but for what tokens have added to its string since: that has
    ``length`` characters and is in ``state``; ``ENDED`` where no string value is being written."""

    node: Node
    state: int = ENDED
    length: int = 0

    def path(self) -> JsonPath:
        """Return a reader of its own at the end of the text."""
        path = self.node.path.copy()
        if self.state != ENDED:
            path.length, path.escape = self.length, self.state % IN_CHARACTER
        return path


class CountingMatcher(LlguidanceMatcher):
    """A matcher of JSON text that keeps to ``limits`` as well; see ``Matcher``."""

    __slots__ = ("_limits", "_places")

    def __init__(
        self,
        matcher: LlguidanceMatcher,
        limits: Limits,
        places: Sequence[Place],
    ) -> None:
        """``matcher`` is part of this one from now on; ``places`` where it was before each of its
        tokens, and where it is."""
        super().__init__(
            matcher._engine,
            matcher._grammar,
            matcher.inner,
            matcher._token_ids,
            is_cheap=matcher._is_cheap,
        )
        self._limits = limits
        self._places = [*places]

    def _like(self, matcher: LlguidanceMatcher) -> LlguidanceMatcher:
        return CountingMatcher(matcher, self._limits, self._places[: len(matcher._token_ids) + 1])

    @property
    def known_mask(self) -> Int32 | None:
        node, state, length = self._places[-1]
        return node.mask if state == 0 and length >= node.least else None

    def learn(self, bitmask: Int32) -> None:
        node, state, length = self._places[-1]
        if state != 0 or node.mask is not None or not 0 <= node.least <= length:
            return
        if self._limits.num_masks < MOST_MASKS and not self.inner.is_error():
            self._limits.num_masks += 1
            node.mask = bitmask.copy()

    def check(self, bitmask: Int32) -> None:
        super().check(bitmask)
        self._restrict(bitmask, self._places[-1])

    @property
    def is_mask_complete(self) -> bool:
        limits, (node, state, length) = self._limits, self._places[-1]
        if limits.has_small:
            return False
        if state != ENDED and node.limit - length < limits.strings.most:
            return False
        return super().is_mask_complete

    def advance(self, token_id: int) -> None:
        super().advance(token_id)
        self._places.append(self._after(self._places[-1], token_id))

    def take(self, token_id: int) -> bool:
        if not self.inner.consume_token(token_id):
            return False
        self._token_ids.append(token_id)
        self._places.append(self._after(self._places[-1], token_id))
        return True

    def allows(self, token_id: int) -> bool:
        return super().allows(token_id) and self._keeps_limits(self._places[-1], token_id)

    def try_advance(self, token_ids: list[int]) -> bool:
        if not super().try_advance(token_ids):
            return False
        for token_id in token_ids:
            place = self._places[-1]
            if not self._keeps_limits(place, token_id):
                self.rollback(len(token_ids))
                return False
            self._places.append(self._after(place, token_id))
        return True

    def forced(self) -> list[int]:
        place = self._places[-1]
        if place.state != ENDED and place.node.least >= 0:
            return []  # the automaton has the string without a limit: it can go on in many ways
        return super().forced()

    def rollback(self, num_tokens: int) -> None:
        super().rollback(num_tokens)
        del self._places[len(self._token_ids) + 1 :]

    # ------------------------------------------------------------ counting

    def _after(self, place: Place, token_id: int) -> Place:
        """Return where a text is after one more token."""
        node, state, length = place
        if state != ENDED:
            effect = self._limits.strings.effect(state)
            after = effect.after[token_id]
            if after != ENDED:
                return Place(node, after, length + effect.units[token_id])
        known = node.following.get((state, token_id))
        return known if known is not None else self._read(place, token_id)

    def _read(self, place: Place, token_id: int) -> Place:
        """Return where a text is after a token that is not all within a string value."""
        limits, node = self._limits, place.node
        text = limits.vocabulary.texts[token_id]
        path = place.path()
        path.feed(text[node.skipped :])
        skipped = max(0, node.skipped - len(text))
        after = limits.node(path, skipped)
        found = Place(after)
        if path.in_string and not path.is_key:
            state = IN_CHARACTER if ends_in_character(text) else path.escape
            found = Place(after, state, path.length)
        limits.remember(node, (place.state, token_id), found)
        return found

    def _keeps_limits(self, place: Place, token_id: int) -> bool:
        """Whether no value is too large after, or within, one more token."""
        limits, (node, state, length) = self._limits, place
        if state != ENDED:
            effect = limits.strings.effect(state)
            if length + effect.units[token_id] > node.limit:
                return False
            if effect.after[token_id] != ENDED:
                return True
        if not limits.has_small:
            return True
        path = place.path()
        for byte in limits.vocabulary.texts[token_id][node.skipped :]:
            path.feed(bytes((byte,)))
            if limits.exceeds(path):
                return False
        return True

    def _restrict(self, bitmask: Int32, place: Place) -> None:
        """Take the tokens out of a mask that would make a value too large."""
        limits, (node, state, length) = self._limits, place
        strings = limits.strings
        if state != ENDED:
            within = strings.within(state, node.limit - length)
            if within is not None:
                np.bitwise_and(bitmask, within, out=bitmask)
        if limits.has_short_strings:
            token_ids = strings.opening if state == ENDED else strings.reopening
            self._restrict_to_kept(bitmask, place, token_ids)
        if limits.has_arrays:
            self._restrict_array(bitmask, place)

    def _restrict_to_kept(self, bitmask: Int32, place: Place, token_ids: Int32) -> None:
        allowed = token_ids[bits_of(bitmask, token_ids)].tolist()
        clear_bits(bitmask, [i for i in allowed if not self._keeps_limits(place, i)])

    def _restrict_array(self, bitmask: Int32, place: Place) -> None:
        path = place.node.path
        level = path.levels[-1] if path.levels else None
        if level is None or not isinstance(level.key, int):
            return
        if self._limits.of_array(path.path[:-1]) - 1 - level.key > _NEAR:
            return
        vocabulary = self._limits.vocabulary
        allowed = allowed_ids(bitmask, len(vocabulary)).tolist()
        commas = [i for i in allowed if b"," in vocabulary.texts[i]]
        self._restrict_to_kept(bitmask, place, np.array(commas, np.int32))


def counting(
    matcher: LlguidanceMatcher,
    limits: Sequence[CountLimit],
    vocabulary: Vocabulary,
    skipped: int = 0,
) -> LlguidanceMatcher:
    """Return a matcher out of one at its start that keeps to ``limits`` as well, in JSON that comes
    after ``skipped`` bytes of other text."""
    if not limits:
        return matcher
    counted = Limits(limits, vocabulary)
    return CountingMatcher(matcher, counted, [Place(counted.node(JsonPath(), skipped))])
