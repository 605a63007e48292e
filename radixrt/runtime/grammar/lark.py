"""Pieces of Lark grammars, as the engine reads them."""

from __future__ import annotations

import json
import re
from typing import Any

from llguidance._lib import regex_to_lark

from radixrt.runtime.grammar.base import GrammarError

MAX_CHOICES = 10_000

_START = re.compile(r"\bstart\b")
_TOKENS = re.compile(r'"(?:\\.|[^"\\\n])*"i?|/(?:\\.|[^/\\\n])+/[a-z]*|//[^\n]*|#[^\n]*|\bstart\b')


def literal(text: str) -> str:
    """Return a string literal."""
    return json.dumps(text)


def pattern(expression: str) -> str:
    """Return a regular expression as a terminal."""
    return f"/{regex_to_lark(expression, use_ascii='')}/"


def json_rule(schema: Any, options: dict[str, Any]) -> str:
    """Return an expression that stands for the values of a JSON schema; ``options`` are the
    engine's."""
    if not isinstance(schema, dict):
        schema = {} if schema is True else {"not": {}}
    return "%json " + json.dumps({**schema, "x-guidance": options})


def choices_grammar(text: str) -> str:
    """Return the grammar of a JSON array of strings. Raises ``GrammarError`` for anything else."""
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"choices: not a JSON array: {error}") from None
    if not isinstance(options, list) or not 1 <= len(options) <= MAX_CHOICES:
        raise GrammarError(f"choices: give a JSON array of 1 to {MAX_CHOICES} strings")
    if not all(isinstance(option, str) and option for option in options):
        raise GrammarError("choices: every choice is a string with at least one character")
    return "start: " + " | ".join(literal(option) for option in dict.fromkeys(options)) + "\n"


def rename_start(grammar: str, name: str) -> str:
    """Return a grammar whose rule ``start`` is called ``name``; literals stay as they are."""

    def replace(found: re.Match[str]) -> str:
        return name if _START.fullmatch(found.group()) else found.group()

    return _TOKENS.sub(replace, grammar)


def healed(grammar: str, prefix: str) -> str:
    """Return a grammar whose texts begin with ``prefix``."""
    return f"start: {literal(prefix)} healed__body\n" + rename_start(grammar, "healed__body")
