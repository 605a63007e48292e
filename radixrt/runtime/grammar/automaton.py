"""Position automata of the regular parts of a grammar (Glushkov 1961)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from radixrt.runtime.grammar.gbnf import Alt, Chars, Node, Ranges, Ref, Repeat, Rules, Text

ALL = -1
"""Every character."""

MAX_PAIRS = 20_000
"""Pairs of positions that are looked at; beyond, everything counts as possible."""


class _Part(NamedTuple):
    nullable: bool
    first: frozenset[int]
    last: frozenset[int]


class Automaton:
    """The positions of a regular part, each with its characters as bits of atoms.

    A counted repetition is read as one without bounds, so it has more texts than the part.
    """

    def __init__(self, node: Node, rules: Rules, atoms_of: Callable[[Ranges], int]) -> None:
        self._rules = rules
        self._atoms_of = atoms_of
        self.atoms: list[int] = []
        self.follow: list[set[int]] = []
        part = self._read(node)
        self.first, self.last = part.first, part.last

    def goes_on_after(self, other: Automaton) -> int:
        """Return the characters with which this part can go on after a complete text of ``other``
        that it begins with."""
        found = 0
        pairs = [(p, q) for p in self.first for q in other.first if self._meets(other, p, q)]
        seen = set(pairs)
        for p, q in pairs:
            if q in other.last:
                for after in self.follow[p]:
                    found |= self.atoms[after]
            for p2 in self.follow[p]:
                for q2 in other.follow[q]:
                    if (p2, q2) not in seen and self._meets(other, p2, q2):
                        seen.add((p2, q2))
                        pairs.append((p2, q2))
            if len(pairs) > MAX_PAIRS:
                return ALL
        return found

    def _meets(self, other: Automaton, p: int, q: int) -> bool:
        return bool(self.atoms[p] & other.atoms[q])

    def _read(self, node: Node) -> _Part:
        if isinstance(node, Text):
            return self._join([self._position(((ord(c), ord(c)),)) for c in node.text])
        if isinstance(node, Chars):
            return self._position(node.ranges)
        if isinstance(node, Ref):
            return self._read(self._rules[node.name])
        if isinstance(node, Repeat):
            part = self._read(node.item)
            if node.most == 0:
                return _Part(True, frozenset(), frozenset())
            if node.most != 1:
                self._link(part.last, part.first)
            return part._replace(nullable=part.nullable or node.least == 0)
        parts = [self._read(item) for item in node.items]
        if isinstance(node, Alt):
            return _Part(
                any(part.nullable for part in parts),
                frozenset().union(*(part.first for part in parts)),
                frozenset().union(*(part.last for part in parts)),
            )
        return self._join(parts)

    def _position(self, ranges: Ranges) -> _Part:
        self.atoms.append(self._atoms_of(ranges))
        self.follow.append(set())
        here = frozenset({len(self.atoms) - 1})
        return _Part(False, here, here)

    def _join(self, parts: list[_Part]) -> _Part:
        whole = _Part(True, frozenset(), frozenset())
        for part in parts:
            self._link(whole.last, part.first)
            whole = _Part(
                whole.nullable and part.nullable,
                whole.first | part.first if whole.nullable else whole.first,
                whole.last | part.last if part.nullable else part.last,
            )
        return whole

    def _link(self, before: frozenset[int], after: frozenset[int]) -> None:
        for position in before:
            self.follow[position] |= after
