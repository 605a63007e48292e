"""From a grammar over characters to a Lark grammar with the same texts.

The engine reads a Lark grammar with a lexer that takes the longest terminal it can, so a terminal
may be longer than one character only where that never takes what should follow. What is not
recursive becomes one regular expression; then, as long as a terminal could swallow the beginning of
what follows it or follows another one, it is taken apart.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from radixrt.runtime.grammar.automaton import Automaton
from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.gbnf import Alt, Chars, Node, Ref, Repeat, Rules, Seq, Text

MAX_PATTERN = 20_000
"""Characters of one terminal's pattern; what would be longer stays a rule."""

MAX_NODES = 4_000
"""Parts that a grammar may have."""

MAX_RULES = 400
"""Rules that ``root`` may reach."""

MAX_SECONDS = 0.1
"""Seconds that a conversion may take."""


def to_lark(rules: Rules) -> str:
    """Return a Lark grammar whose rule ``start`` has the texts of ``root``."""
    return _Converter(rules).convert()


@dataclass(slots=True, eq=False)
class _Terminal:
    """A part of the grammar that is matched as one piece; sets of characters as bits of atoms."""

    node: Node
    pattern: str
    first: int
    automaton: Automaton
    follow: int = 0


@dataclass(slots=True)
class _Facts:
    """What a rule can begin with and be followed by."""

    nullable: bool = False
    first: int = 0
    follow: int = 0


@dataclass(slots=True)
class _Converter:
    rules: Rules
    apart: set[int] = field(default_factory=set)
    atoms: list[tuple[int, int]] = field(default_factory=list)
    kept: list[Node] = field(default_factory=list)
    _patterns: dict[int, str | None] = field(default_factory=dict)
    _automata: dict[str, Automaton] = field(default_factory=dict)
    _conflicts: dict[tuple[str, str], int] = field(default_factory=dict)
    _split: dict[int, Node] = field(default_factory=dict)
    _recursive: set[str] = field(default_factory=set)
    _names: dict[str, str] = field(default_factory=dict)

    def convert(self) -> str:
        self.rules = _reachable(self.rules)
        if sum(map(_size, self.rules.values())) > MAX_NODES:
            raise GrammarError(f"the grammar has more than {MAX_NODES} parts")
        if len(self.rules) > MAX_RULES:
            raise GrammarError(f"the grammar has more than {MAX_RULES} rules")
        self._names = {name: _rule_name(i, name) for i, name in enumerate(self.rules)}
        self._names["root"] = "start"
        self._recursive = _recursive(self.rules)
        self.atoms = _atoms(self.rules)
        stop_at = time.monotonic() + MAX_SECONDS
        while True:
            if time.monotonic() > stop_at:
                raise GrammarError(
                    f"converting the grammar takes over {MAX_SECONDS} s; simplify it"
                )
            terminals = self._terminals()
            conflict = self._conflict(list(terminals.values()))
            if conflict is None:
                return self._write(terminals)
            self.apart.add(id(conflict.node))

    def _conflict(self, terminals: list[_Terminal]) -> _Terminal | None:
        """Return a terminal that could swallow what should follow itself or a terminal that can
        stand where it stands: the lexer would go on with it."""
        by_pattern: dict[str, _Terminal] = {}
        follow: dict[str, int] = {}
        for terminal in terminals:
            by_pattern[terminal.pattern] = terminal
            follow[terminal.pattern] = follow.get(terminal.pattern, 0) | terminal.follow
        for greedy in terminals:
            for pattern, other in by_pattern.items():
                if other.first & greedy.first and follow[pattern] & self._goes_on(greedy, other):
                    return greedy
        return None

    def _goes_on(self, greedy: _Terminal, other: _Terminal) -> int:
        key = greedy.pattern, other.pattern
        if key not in self._conflicts:
            self._conflicts[key] = greedy.automaton.goes_on_after(other.automaton)
        return self._conflicts[key]

    # ------------------------------------------------------------ terminals

    def _terminals(self) -> dict[int, _Terminal]:
        """Return the terminals of the grammar as it is taken apart now, with what follows them."""
        terminals: dict[int, _Terminal] = {}
        for name in self._live():
            self._collect(self.rules[name], terminals)
        facts = {name: _Facts() for name in self.rules}
        changed = True
        while changed:
            changed = False
            for name, fact in facts.items():
                nullable, first = self._begin(self.rules[name], terminals, facts)
                if (nullable, first) != (fact.nullable, fact.first):
                    fact.nullable, fact.first, changed = nullable, first, True
        changed = True
        while changed:
            changed = False
            for name in self._live():
                changed |= self._follow(self.rules[name], facts[name].follow, terminals, facts)
        return terminals

    def _live(self) -> list[str]:
        """The rules that are written as rules."""
        seen = ["root"]
        for name in seen:
            for ref in self._rule_refs(self.rules[name]):
                if ref not in seen:
                    seen.append(ref)
        return seen

    def _rule_refs(self, node: Node) -> list[str]:
        if self._is_terminal(node):
            return []
        node = self._taken_apart(node)
        if isinstance(node, Ref):
            return [node.name]
        if isinstance(node, Seq | Alt):
            return [name for item in node.items for name in self._rule_refs(item)]
        return self._rule_refs(node.item) if isinstance(node, Repeat) else []

    def _is_terminal(self, node: Node) -> bool:
        if id(node) in self.apart:
            return False
        pattern = self._pattern(node)
        return pattern is not None and pattern != "" and not self._nullable(node)

    def _taken_apart(self, node: Node) -> Node:
        """A literal that is no terminal is its characters; anything else has its parts."""
        if not isinstance(node, Text) or len(node.text) == 1:
            return node
        if id(node) not in self._split:
            self._split[id(node)] = Seq(tuple(Text(char) for char in node.text))
        return self._split[id(node)]

    def _collect(self, node: Node, terminals: dict[int, _Terminal]) -> None:
        if self._is_terminal(node):
            pattern = self._pattern(node)
            assert pattern is not None
            if pattern not in self._automata:
                self._automata[pattern] = Automaton(node, self.rules, self._atoms_of)
            terminals[id(node)] = _Terminal(
                node, pattern, self._first(node), self._automata[pattern]
            )
            return
        node = self._taken_apart(node)
        if isinstance(node, Seq | Alt):
            for item in node.items:
                self._collect(item, terminals)
        elif isinstance(node, Repeat):
            self._collect(node.item, terminals)

    def _begin(
        self, node: Node, terminals: dict[int, _Terminal], facts: dict[str, _Facts]
    ) -> tuple[bool, int]:
        """Return whether a part can be empty and what it can begin with."""
        if id(node) in terminals:
            return False, terminals[id(node)].first
        node = self._taken_apart(node)
        if isinstance(node, Ref):
            return facts[node.name].nullable, facts[node.name].first
        if isinstance(node, Alt):
            parts = [self._begin(item, terminals, facts) for item in node.items]
            return any(n for n, _ in parts), _union(f for _, f in parts)
        if isinstance(node, Seq):
            first = 0
            for item in node.items:
                nullable, begins = self._begin(item, terminals, facts)
                first |= begins
                if not nullable:
                    return False, first
            return True, first
        if isinstance(node, Repeat):
            nullable, first = self._begin(node.item, terminals, facts)
            return nullable or node.least == 0, 0 if node.most == 0 else first
        return False, self._first(node)

    def _follow(
        self,
        node: Node,
        after: int,
        terminals: dict[int, _Terminal],
        facts: dict[str, _Facts],
    ) -> bool:
        """Note that ``after`` can follow a part; True when that was news."""
        if id(node) in terminals:
            terminal = terminals[id(node)]
            is_news = bool(after & ~terminal.follow)
            terminal.follow |= after
            return is_news
        node = self._taken_apart(node)
        if isinstance(node, Ref):
            fact = facts[node.name]
            is_news = bool(after & ~fact.follow)
            fact.follow |= after
            return is_news
        if isinstance(node, Alt):
            news = [self._follow(item, after, terminals, facts) for item in node.items]
            return any(news)
        if isinstance(node, Repeat):
            _, first = self._begin(node.item, terminals, facts)
            again = after if node.most == 1 else after | first
            return self._follow(node.item, again, terminals, facts)
        is_news = False
        if isinstance(node, Seq):
            for item in reversed(node.items):
                is_news |= self._follow(item, after, terminals, facts)
                nullable, first = self._begin(item, terminals, facts)
                after = after | first if nullable else first
        return is_news

    # ------------------------------------------------------------ regular parts

    def _pattern(self, node: Node) -> str | None:
        """Return a part as a regular expression; None when it is recursive or too long."""
        key = id(node)
        if key not in self._patterns:
            self._patterns[key] = None  # until it is known
            built = self._build_pattern(node)
            self._patterns[key] = built if built is None or len(built) <= MAX_PATTERN else None
        return self._patterns[key]

    def _build_pattern(self, node: Node) -> str | None:
        if isinstance(node, Text):
            return "".join(map(_escaped, map(ord, node.text)))
        if isinstance(node, Chars):
            return _class(node)
        if isinstance(node, Ref):
            if node.name in self._recursive:
                return None
            return self._pattern(self.rules[node.name])
        if isinstance(node, Repeat):
            inner = self._pattern(node.item)
            if inner is None:
                return None
            return f"(?:{inner}){_times(node)}" if inner else ""
        parts = [self._pattern(item) for item in node.items]
        known = [part for part in parts if part is not None]
        if len(known) != len(parts):
            return None
        if isinstance(node, Seq):
            return "".join(known)
        return "(?:" + "|".join(known) + ")"

    def _nullable(self, node: Node) -> bool:
        """Whether a regular part can be empty."""
        if isinstance(node, Ref):
            return self._nullable(self.rules[node.name])
        if isinstance(node, Seq):
            return all(map(self._nullable, node.items))
        if isinstance(node, Alt):
            return any(map(self._nullable, node.items))
        if isinstance(node, Repeat):
            return node.least == 0 or self._nullable(node.item)
        return False

    def _first(self, node: Node) -> int:
        """The characters that a regular part can begin with."""
        if isinstance(node, Text):
            return self._atoms_of(((ord(node.text[0]), ord(node.text[0])),))
        if isinstance(node, Chars):
            return self._atoms_of(node.ranges)
        if isinstance(node, Ref):
            return self._first(self.rules[node.name])
        if isinstance(node, Alt):
            return _union(map(self._first, node.items))
        if isinstance(node, Repeat):
            return self._first(node.item)
        first = 0
        for item in node.items:
            first |= self._first(item)
            if not self._nullable(item):
                break
        return first

    def _atoms_of(self, ranges: tuple[tuple[int, int], ...]) -> int:
        return _union(
            1 << index
            for index, (low, high) in enumerate(self.atoms)
            if any(low <= last and high >= first for first, last in ranges)
        )

    # ------------------------------------------------------------ text

    def _write(self, terminals: dict[int, _Terminal]) -> str:
        names: dict[str, str] = {}
        for terminal in terminals.values():
            names.setdefault(terminal.pattern, f"T{len(names)}")
        lines = []
        for name in self._live():
            rule = self._names[name]
            lines.append(f"{rule}: {self._expression(self.rules[name], terminals, names)}")
        lines += [f"{name}: /{pattern}/" for pattern, name in names.items()]
        return "\n".join(lines) + "\n"

    def _expression(
        self, node: Node, terminals: dict[int, _Terminal], names: dict[str, str]
    ) -> str:
        if id(node) in terminals:
            return names[terminals[id(node)].pattern]
        node = self._taken_apart(node)
        if isinstance(node, Ref):
            return self._names[node.name]
        if isinstance(node, Repeat):
            if node.most == 0:
                return '""'
            return f"({self._expression(node.item, terminals, names)}){_times(node)}"
        assert isinstance(node, Seq | Alt)
        parts = [self._expression(item, terminals, names) for item in node.items]
        if isinstance(node, Seq):
            return " ".join(parts) if parts else '""'
        return "(" + " | ".join(parts) + ")"


def _reachable(rules: Rules) -> Rules:
    seen = {"root": rules["root"]}
    todo = ["root"]
    for name in todo:
        for node in _nodes(rules[name]):
            if isinstance(node, Ref) and node.name not in seen:
                seen[node.name] = rules[node.name]
                todo.append(node.name)
    return seen


def _recursive(rules: Rules) -> set[str]:
    """Return the rules that use themselves, by whatever way, and those that use such a rule."""
    uses = {
        name: {n.name for n in _nodes(node) if isinstance(n, Ref)} for name, node in rules.items()
    }
    reach = {name: set(direct) for name, direct in uses.items()}
    changed = True
    while changed:
        changed = False
        for name in reach:
            more = set().union(*(reach[other] for other in reach[name])) - reach[name]
            if more:
                reach[name] |= more
                changed = True
    loops = {name for name in reach if name in reach[name]}
    return loops | {name for name in reach if reach[name] & loops}


def _nodes(node: Node) -> list[Node]:
    found = [node]
    if isinstance(node, Seq | Alt):
        for item in node.items:
            found += _nodes(item)
    elif isinstance(node, Repeat):
        found += _nodes(node.item)
    return found


def _size(node: Node) -> int:
    return sum(len(n.text) if isinstance(n, Text) else 1 for n in _nodes(node))


def _atoms(rules: Rules) -> list[tuple[int, int]]:
    """Return ranges of characters that the grammar never tells apart."""
    cuts = {0, 0x110000}
    for rule in rules.values():
        for node in _nodes(rule):
            if isinstance(node, Text):
                cuts |= {edge for char in node.text for edge in (ord(char), ord(char) + 1)}
            elif isinstance(node, Chars):
                cuts |= {edge for low, high in node.ranges for edge in (low, high + 1)}
    edges = sorted(cuts)
    return [(low, high - 1) for low, high in itertools.pairwise(edges)]


def _union(parts: Iterable[int]) -> int:
    found = 0
    for part in parts:
        found |= part
    return found


def _times(node: Repeat) -> str:
    if (node.least, node.most) in ((0, None), (1, None), (0, 1)):
        return {(0, None): "*", (1, None): "+", (0, 1): "?"}[(node.least, node.most)]
    return f"{{{node.least},{'' if node.most is None else node.most}}}"


def _class(node: Chars) -> str:
    ranges = "".join(
        _escaped(low) if low == high else f"{_escaped(low)}-{_escaped(high)}"
        for low, high in node.ranges
    )
    return f"[{ranges}]"


def _escaped(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:x}}}"


def _rule_name(number: int, name: str) -> str:
    return f"r{number}_" + "".join(
        char.lower() if char.isascii() and char.isalnum() else "_" for char in name
    )
