"""Grammars as llama.cpp (GBNF) and SGLang (EBNF) write them, read into a tree.

    root ::= item ("," item)*        # comment
    item ::= [a-z]+ | "\\"" [^"]{1,8} "\\""

Both are grammars over characters. EBNF also takes single quotes and ``/* … */``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from radixrt.runtime.grammar.base import GrammarError

Ranges = tuple[tuple[int, int], ...]

MAX_CODEPOINT = 0x10FFFF
MAX_NESTING = 60
MAX_REPEAT = 4096
MAX_RULES = 1000

ANY: Ranges = ((0, 0xD7FF), (0xE000, MAX_CODEPOINT))


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A literal of at least one character."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Chars:
    """One character out of ascending, inclusive ranges of code points."""

    ranges: Ranges


@dataclass(frozen=True, slots=True, eq=False)
class Ref:
    """Another rule."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Seq:
    """One after the other; empty is the empty text."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Alt:
    """One of them."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Repeat:
    """``least`` to ``most`` times; None is without end."""

    item: Node
    least: int
    most: int | None


Node = Text | Chars | Ref | Seq | Alt | Repeat
Rules = dict[str, Node]

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "'": "'", "[": "[", "]": "]"}
_ESCAPES |= {"-": "-", "^": "^", "/": "/", "0": "\0", "f": "\f", "v": "\v", "b": "\b", "a": "\a"}
_HEX = {"x": 2, "u": 4, "U": 8}


def parse(text: str, dialect: Literal["gbnf", "ebnf"]) -> Rules:
    """Return the rules of a grammar, of which ``root`` is the first to use.

    Raises ``GrammarError`` with the line of what cannot be read.
    """
    rules = _Parser(text, dialect).rules()
    if "root" not in rules:
        raise GrammarError(f"{dialect}: there is no rule root; write root ::= …")
    if len(rules) > MAX_RULES:
        raise GrammarError(f"{dialect}: {len(rules)} rules; a grammar has at most {MAX_RULES}")
    for name, node in rules.items():
        for missing in _refs(node) - rules.keys():
            raise GrammarError(f"{dialect}: rule {name} uses {missing}, which is not defined")
    return rules


def _refs(node: Node) -> set[str]:
    if isinstance(node, Ref):
        return {node.name}
    if isinstance(node, Seq | Alt):
        return set().union(*map(_refs, node.items))
    return _refs(node.item) if isinstance(node, Repeat) else set()


class _Parser:
    def __init__(self, text: str, dialect: str) -> None:
        self._text = text
        self._dialect = dialect
        self._at = 0

    def rules(self) -> Rules:
        rules: Rules = {}
        self._skip(lines=True)
        while self._at < len(self._text):
            name = self._name()
            self._skip(lines=True)
            if not self._take("::=") and not (self._dialect == "ebnf" and self._take(":=")):
                self._fail(f"expected ::= after {name}")
            self._skip(lines=True)
            node = self._alternatives(0)
            if name in rules:
                self._fail(f"rule {name} is defined twice")
            rules[name] = node
            self._take(";")
            self._skip(lines=True)
        return rules

    # ------------------------------------------------------------ expressions

    def _alternatives(self, depth: int) -> Node:
        """``depth`` counts the parentheses around; within them lines may be broken anywhere."""
        if depth > MAX_NESTING:
            self._fail(f"nested more than {MAX_NESTING} levels")
        items = [self._sequence(depth)]
        while True:
            before = self._at
            self._skip(lines=True)
            if not self._take("|"):
                self._at = before
                break
            self._skip(lines=True)
            items.append(self._sequence(depth))
        return items[0] if len(items) == 1 else Alt(tuple(items))

    def _sequence(self, depth: int) -> Node:
        items: list[Node] = []
        while True:
            self._skip(lines=depth > 0)
            item = self._primary(depth)
            if item is None:
                break
            items.append(self._repeated(item))
        return items[0] if len(items) == 1 else Seq(tuple(items))

    def _primary(self, depth: int) -> Node | None:
        char = self._peek()
        if char == '"' or (char == "'" and self._dialect == "ebnf"):
            text = self._quoted(char)
            return Text(text) if text else Seq(())
        if char == "[":
            return self._class()
        if char == ".":
            self._at += 1
            return Chars(ANY)
        if char == "(":
            self._at += 1
            self._skip(lines=True)
            node = self._alternatives(depth + 1)
            self._skip(lines=True)
            if not self._take(")"):
                self._fail("expected )")
            return node
        if char.isalpha() or char == "_":
            before = self._at
            name = self._name()
            after = self._at
            self._skip(lines=True)
            if self._text.startswith(("::=", ":="), self._at):  # the next rule begins
                self._at = before
                return None
            self._at = after
            return Ref(name)
        return None

    def _repeated(self, item: Node) -> Node:
        while True:
            char = self._peek()
            if char in ("*", "+", "?"):
                self._at += 1
                item = Repeat(item, int(char == "+"), 1 if char == "?" else None)
            elif char == "{":
                item = self._counted(item)
            else:
                return item

    def _counted(self, item: Node) -> Node:
        end = self._text.find("}", self._at)
        inside = self._text[self._at + 1 : end] if end >= 0 else ""
        low, comma, high = inside.partition(",")
        low, high = low.strip(), high.strip()
        if not low.isdigit() and not (comma and not low and high.isdigit()):
            self._fail("expected {m}, {m,} or {m,n}")
        least = int(low or 0)
        most = least if not comma else int(high) if high.isdigit() else None
        if max(least, most or 0) > MAX_REPEAT or (most is not None and most < least):
            self._fail(f"repeats go from 0 to {MAX_REPEAT}, upwards")
        self._at = end + 1
        return Repeat(item, least, most)

    # ------------------------------------------------------------ characters

    def _quoted(self, quote: str) -> str:
        self._at += 1
        chars = []
        while self._peek() != quote:
            if self._peek() in ("", "\n"):
                self._fail(f"expected {quote}")
            chars.append(chr(self._char()))
        self._at += 1
        return "".join(chars)

    def _class(self) -> Chars:
        self._at += 1
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        while self._peek() != "]":
            if self._peek() == "":
                self._fail("expected ]")
            low = high = self._char()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._char()
            if high < low:
                self._fail("a range of characters goes upwards")
            ranges.append((low, high))
        self._at += 1
        merged = _merged(ranges)
        chars = _complement(merged) if negated else merged
        if not chars:
            self._fail("a class of no characters")
        return Chars(chars)

    def _char(self) -> int:
        char = self._text[self._at]
        self._at += 1
        if char != "\\":
            return ord(char)
        escape = self._peek()
        self._at += 1
        if escape in _HEX:
            digits = self._text[self._at : self._at + _HEX[escape]]
            self._at += len(digits)
            try:
                code = int(digits, 16)
            except ValueError:
                self._fail(f"\\{escape} needs {_HEX[escape]} hexadecimal digits")
            if code > MAX_CODEPOINT or 0xD800 <= code < 0xE000:
                self._fail(f"\\{escape}{digits} is no character")
            return code
        if escape not in _ESCAPES:
            self._fail(f"unknown escape \\{escape}")
        return ord(_ESCAPES[escape])

    # ------------------------------------------------------------ small things

    def _name(self) -> str:
        start = self._at
        while self._peek().isalnum() or self._peek() in ("_", "-"):
            if self._peek() == "":
                break
            self._at += 1
        if start == self._at:
            self._fail("expected the name of a rule")
        return self._text[start : self._at]

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, what: str) -> bool:
        if self._text.startswith(what, self._at):
            self._at += len(what)
            return True
        return False

    def _skip(self, *, lines: bool) -> None:
        blanks = " \t\r\n" if lines else " \t"
        while self._at < len(self._text):
            if self._text[self._at] in blanks:
                self._at += 1
            elif self._text[self._at] == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif self._dialect == "ebnf" and self._text.startswith("/*", self._at):
                end = self._text.find("*/", self._at)
                self._at = len(self._text) if end < 0 else end + 2
            else:
                return

    def _fail(self, message: str) -> None:
        line = self._text.count("\n", 0, self._at) + 1
        near = self._text[self._at : self._at + 20]
        raise GrammarError(f"{self._dialect}: line {line}, at {near!r}: {message}")


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def _complement(ranges: Ranges) -> Ranges:
    rest: list[tuple[int, int]] = []
    for first, last in ANY:
        at = first
        for low, high in ranges:
            if high < at or low > last:
                continue
            if low > at:
                rest.append((at, low - 1))
            at = max(at, high + 1)
        if at <= last:
            rest.append((at, last))
    return tuple(rest)
