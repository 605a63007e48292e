"""A grammar that writes random sentences, and the hash that keeps held-out text apart."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

HELD_OUT_ONE_IN = 12
_T = TypeVar("_T")
_SLOT = re.compile(r"\{(\w+)\}")


def is_held_out(key: str) -> bool:
    """Whether an item belongs to the held-out side; depends on the key's bytes alone."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


def pick(rng: random.Random, items: Sequence[_T]) -> _T:
    """One item, uniformly; several times faster than `rng.choice`."""
    return items[int(rng.random() * len(items))]


def words(text: str) -> list[str]:
    """The words of a list that reads better without quotes and commas."""
    return text.split()


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


class Grammar:
    """Rules name → alternatives; `{name}` in an alternative stands for another rule."""

    def __init__(self, rules: Mapping[str, str | Sequence[str]]) -> None:
        self._rules = {
            name: [
                _SLOT.split(text)
                for text in (value.split("|") if isinstance(value, str) else value)
            ]
            for name, value in rules.items()
        }
        for alternatives in self._rules.values():
            for parts in alternatives:
                missing = [slot for slot in parts[1::2] if slot not in self._rules]
                assert not missing, missing

    def expand(self, name: str, rng: random.Random) -> str:
        alternatives = self._rules[name]
        parts = alternatives[int(rng.random() * len(alternatives))]
        if len(parts) == 1:
            return parts[0]
        return "".join(
            self.expand(part, rng) if i % 2 else part for i, part in enumerate(parts) if part
        )

    def sentence(self, name: str, rng: random.Random) -> str:
        return capitalized(self.expand(name, rng))

    def sentence_of(self, name: str, rng: random.Random, held_out: bool) -> str:
        """A sentence from the side asked for; the two sides never share one."""
        while True:
            text = self.sentence(name, rng)
            if is_held_out(text) == held_out:
                return text
