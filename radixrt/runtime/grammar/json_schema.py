"""JSON schemas in tiers: as they are, rewritten where that is exact, else leniently.

What the engine cannot enforce of a schema it leaves out, with a warning; the finished value is then
validated in full (``validate.py``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.counting import counting
from radixrt.runtime.grammar.enforcement import Keyword, report
from radixrt.runtime.grammar.lark import json_rule
from radixrt.runtime.grammar.layout import laid_out
from radixrt.runtime.grammar.limits import CountLimit, take_long_limits
from radixrt.runtime.grammar.llguidance import (
    LlguidanceEngine,
    LlguidanceMatcher,
    json_blanks,
    json_grammar,
    lark_grammar,
    warnings_of,
)
from radixrt.runtime.grammar.normalise import normalise


@dataclass(frozen=True, slots=True)
class SchemaGrammar:
    """A compiled schema: a matcher at its start, what is left to count and to validate."""

    grammar: str
    matcher: LlguidanceMatcher
    schema: Any
    normalised: Any
    lark: str | None
    keywords: tuple[Keyword, ...]
    warnings: tuple[str, ...]
    limits: tuple[CountLimit, ...]
    spaced: bool

    def as_lark(self) -> str:
        """Return the same grammar in Lark, to be part of another one."""
        if self.lark is not None:
            return self.lark
        options = {"lenient": True, **json_blanks(self.spaced)}
        return f"start: {json_rule(self.normalised, options)}\n"

    @property
    def is_enforced(self) -> bool:
        """Whether the grammar alone makes every value valid."""
        return all(keyword.status != "checked" for keyword in self.keywords)


def parse_schema(text: str) -> Any:
    """Return a schema. Raises ``GrammarError`` for text that is none."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"json_schema: not JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise GrammarError(f"json_schema: a schema is an object, not {json.dumps(schema)[:40]}")
    if schema is False:
        raise GrammarError("json_schema: false allows no value at all")
    return {} if schema is True else schema


def compile_schema(
    engine: LlguidanceEngine,
    text: str,
    *,
    strict: bool = False,
    indent: int | None = None,
    any_order: bool = False,
    spaced: bool = False,
) -> SchemaGrammar:
    """Compile a schema; ``GrammarError`` when no tier can, or ``strict`` refuses the last one."""
    schema = parse_schema(text)
    bounded, limits = take_long_limits(schema)
    normalised = normalise(bounded)
    lark = None
    if indent is not None or any_order:
        lark = laid_out(normalised, indent=indent, any_order=any_order, spaced=spaced)
    grammar, matcher, warnings = _build(engine, normalised, lark, spaced)
    keywords = report(schema, normalised, warnings, limits.checked)
    if strict:
        _refuse_unenforced(keywords)
    counted = limits.counted
    if any_order:  # what follows depends on which properties there were
        counted = [limit._replace(least=-1) for limit in counted]
    return SchemaGrammar(
        grammar,
        counting(matcher, counted, engine.vocabulary),
        schema,
        normalised,
        lark,
        keywords,
        tuple(warnings),
        tuple(counted),
        spaced,
    )


def _build(
    engine: LlguidanceEngine, schema: Any, lark: str | None, spaced: bool
) -> tuple[str, LlguidanceMatcher, list[str]]:
    if lark is not None:
        grammar = lark_grammar(lark)
        matcher = engine.build(grammar)
        return grammar, matcher, warnings_of(matcher)
    grammar = json_grammar(json.dumps(schema), lenient=False, spaced=spaced)
    try:
        return grammar, engine.build(grammar), []
    except GrammarError:
        pass
    grammar = json_grammar(json.dumps(schema), lenient=True, spaced=spaced)
    try:
        matcher = engine.build(grammar)
        return grammar, matcher, warnings_of(matcher)
    except GrammarError:
        left_out: list[str] = []
        schema = _without_patterns(engine, schema, left_out)
        if not left_out:
            raise
    grammar = json_grammar(json.dumps(schema), lenient=True, spaced=spaced)
    matcher = engine.build(grammar)
    return grammar, matcher, [*warnings_of(matcher), *left_out]


def _without_patterns(engine: LlguidanceEngine, schema: Any, left_out: list[str]) -> Any:
    """Return a schema without the patterns that the engine cannot read (look-around)."""
    if isinstance(schema, list):
        return [_without_patterns(engine, item, left_out) for item in schema]
    if not isinstance(schema, dict):
        return schema
    new = {key: _without_patterns(engine, value, left_out) for key, value in schema.items()}
    if isinstance(new.get("pattern"), str) and not _is_readable(engine, new["pattern"]):
        left_out.append(f"pattern {new.pop('pattern')[:80]!r} is left out")
    patterns = new.get("patternProperties")
    if isinstance(patterns, dict):
        for name in [name for name in patterns if not _is_readable(engine, name)]:
            left_out.append(f"patternProperties {name[:80]!r} is left out")
            del patterns[name]
            new["additionalProperties"] = True
    return new


def _is_readable(engine: LlguidanceEngine, pattern: str) -> bool:
    try:
        engine.build(json_grammar(json.dumps({"pattern": pattern}), lenient=True))
    except GrammarError:
        return False
    return True


def _refuse_unenforced(keywords: tuple[Keyword, ...]) -> None:
    loose = [keyword for keyword in keywords if keyword.status != "enforced"]
    if loose:
        named = ", ".join(f"{k.keyword} at {k.pointer or '/'} ({k.status})" for k in loose[:8])
        raise GrammarError(
            f"json_schema: strict=True, but the grammar does not enforce {named}; rewrite the "
            "schema, or leave strict out to have the finished value checked"
        )
