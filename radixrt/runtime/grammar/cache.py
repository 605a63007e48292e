"""Compiled constraints, kept by content."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from radixrt.runtime.grammar.compiled import Compiled
from radixrt.runtime.grammar.llguidance import LlguidanceMatcher
from radixrt.runtime.wire import GrammarSpec

Key = tuple[object, ...]

MOST_TEMPLATES = 4
"""Matchers at the start that a constraint is kept with: forks of one share a lexer and its lock."""

FORKS_A_TEMPLATE = 8
"""Texts that begin with a template before another one is worth building."""


def key_of(spec: GrammarSpec) -> Key:
    """Return what a compiled constraint depends on."""
    return (
        *(
            spec.kind,
            spec.text,
            spec.finish,
            spec.strict,
            spec.indent,
            spec.any_order,
            spec.spaced,
            spec.heal,
        ),
    )


@dataclass(slots=True, eq=False)
class Entry:
    """A compiled constraint and its templates, of which every text gets a fork. Compiling it took
    ``seconds``."""

    compiled: Compiled
    templates: list[LlguidanceMatcher]
    seconds: float = 0.0
    num_forks: int = 0
    is_growing: bool = False

    def fork(self) -> LlguidanceMatcher:
        """Return a fresh matcher. A template that ran into a limit is given up."""
        self.templates = [t for t in self.templates if not t.is_broken] or self.templates[:1]
        self.num_forks += 1
        return self.templates[self.num_forks % len(self.templates)].fork()

    @property
    def wants_template(self) -> bool:
        """Whether another template should be built."""
        n = len(self.templates)
        return n < MOST_TEMPLATES and self.num_forks >= n * FORKS_A_TEMPLATE and not self.is_growing


@dataclass(slots=True)
class GrammarCache:
    """The most recently used compiled constraints, at most ``capacity``. Errors are not kept."""

    capacity: int = 256
    num_hits: int = 0
    num_misses: int = 0
    num_evicted: int = 0
    _entries: OrderedDict[Key, Entry] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Entry | None:
        """Return what is kept under a key."""
        entry = self._entries.get(key)
        if entry is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._entries.move_to_end(key)
        return entry

    def put(self, key: Key, entry: Entry) -> None:
        """Keep an entry."""
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
            self.num_evicted += 1
