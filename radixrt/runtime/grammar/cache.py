"""Compiled constraints, kept by content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from radixrt.runtime.grammar.base import GrammarCompiler, Matcher
from radixrt.runtime.wire import GrammarSpec


class CachedCompiler:
    """A compiler that compiles each constraint once; the least recently used are forgotten.

    What is kept is a matcher at its start, of which every call gets a fork. Errors are not kept.
    """

    def __init__(self, compiler: GrammarCompiler, capacity: int = 256) -> None:
        self._compiler = compiler
        self._capacity = capacity
        self._matchers: OrderedDict[tuple[str, str], Matcher] = OrderedDict()
        self.num_hits = 0
        self.num_compiled = 0

    def compile(self, spec: GrammarSpec) -> Matcher:
        """Return a fresh matcher; ``GrammarError`` for a constraint that cannot be compiled."""
        key = spec.kind, spec.text
        matcher = self._matchers.get(key)
        if matcher is None:
            matcher = self._compiler.compile(spec)
            self.num_compiled += 1
            self._matchers[key] = matcher
            if len(self._matchers) > self._capacity:
                self._matchers.popitem(last=False)
        else:
            self.num_hits += 1
            self._matchers.move_to_end(key)
        return matcher.fork()

    def forget(self, spec: GrammarSpec) -> None:
        """Drop a constraint whose matcher failed: forks share limits with what they came from."""
        self._matchers.pop((spec.kind, spec.text), None)


class LazyCompiler:
    """A compiler that is built when it is first used."""

    def __init__(self, build: Callable[[], GrammarCompiler]) -> None:
        self._build = build
        self._compiler: GrammarCompiler | None = None

    def compile(self, spec: GrammarSpec) -> Matcher:
        """Return a fresh matcher; ``GrammarError`` for a constraint that cannot be compiled."""
        if self._compiler is None:
            self._compiler = self._build()
        return self._compiler.compile(spec)
