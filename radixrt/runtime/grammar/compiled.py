"""A constraint that was compiled, shared by the calls that use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from radixrt.runtime.grammar.completing import Completer
from radixrt.runtime.grammar.enforcement import Keyword
from radixrt.runtime.grammar.limits import CountLimit
from radixrt.runtime.grammar.tools import Tools
from radixrt.runtime.grammar.validate import Failure
from radixrt.runtime.grammar.verdicts import Outlook
from radixrt.runtime.grammar.ways import Ways


class Validator(Protocol):
    """The final check of a finished text."""

    def check(self, text: str) -> Failure | None:
        """Return what is wrong with it; ``GrammarError`` when that cannot be told."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """``grammar`` is the engine's form; ``shortest`` a short text under it as tokens, None where
    none was looked for or found; ``opening`` the tokens that every text begins with; ``ways`` what
    is remembered of ways to the end; ``completer``, made of ``outlook``, proposes some of JSON
    whose layout it knows. ``validator`` checks finished texts; ``is_enforced``: it is
    not expected to find anything, so text may be shown before. ``limits`` are left to be counted,
    in the JSON after ``healed`` bytes of the prompt's end."""

    grammar: str
    is_json: bool = False
    is_enforced: bool = True
    keywords: tuple[Keyword, ...] = ()
    warnings: tuple[str, ...] = ()
    limits: tuple[CountLimit, ...] = ()
    healed: int = 0
    validator: Validator | None = None
    shortest: tuple[int, ...] | None = None
    tools: Tools | None = None
    opening: tuple[int, ...] = ()
    outlook: Outlook | None = None
    completer: Completer | None = field(default=None, compare=False)
    ways: Ways = field(default_factory=Ways, compare=False)
