"""From a constraint's text to a compiled grammar."""

from __future__ import annotations

import json
from dataclasses import replace

from radixrt.runtime.grammar import gbnf
from radixrt.runtime.grammar.base import EngineRefusal, GrammarError
from radixrt.runtime.grammar.closing import shortest_close
from radixrt.runtime.grammar.compiled import Compiled, Validator
from radixrt.runtime.grammar.completing import Completer
from radixrt.runtime.grammar.counting import counting
from radixrt.runtime.grammar.gbnf_lark import to_lark
from radixrt.runtime.grammar.json_schema import SchemaGrammar, compile_schema, parse_schema
from radixrt.runtime.grammar.lark import (
    choices_grammar,
    healed,
    pattern,
)
from radixrt.runtime.grammar.llguidance import (
    LlguidanceEngine,
    LlguidanceMatcher,
    lark_grammar,
    regex_grammar,
)
from radixrt.runtime.grammar.pattern_texts import PatternTexts
from radixrt.runtime.grammar.refusing import refusal
from radixrt.runtime.grammar.tools import ToolValidator, parse_tools, tools_grammar
from radixrt.runtime.grammar.validate import FinalValidator
from radixrt.runtime.grammar.verdicts import Judged, Outlook
from radixrt.runtime.wire import GrammarSpec

MAX_TEXT_LEN = 512 * 1024
"""Characters that the text of a constraint may have."""

CHECKED_KINDS = ("json_schema", "tools")
"""Kinds whose finished texts are validated."""

CLOSING_LIMIT = 4096
"""Tokens that the shortest text under a constraint is looked for with."""


def adopt(
    engine: LlguidanceEngine, spec: GrammarSpec, judged: Judged, validator: Validator | None
) -> tuple[Compiled, LlguidanceMatcher]:
    """Return what ``compile_grammar`` would, of a constraint that was compiled elsewhere:
    ``validator`` is used if it has to be checked at all."""
    is_checked = spec.kind in CHECKED_KINDS
    compiled = Compiled(
        judged.grammar,
        is_json=judged.is_json,
        is_enforced=judged.is_enforced,
        keywords=judged.keywords,
        warnings=judged.warnings,
        limits=judged.limits,
        validator=validator if is_checked else None,
        shortest=judged.shortest,
        tools=parse_tools(spec.text) if spec.kind == "tools" else None,
        healed=len(spec.heal.encode()),
        opening=judged.opening,
        outlook=judged.outlook,
        completer=completer_of(judged.outlook),
    )
    return compiled, build(engine, compiled)


def build(engine: LlguidanceEngine, compiled: Compiled) -> LlguidanceMatcher:
    """Return a new matcher at the start of a constraint. Raises ``GrammarError``."""
    matcher = engine.build(compiled.grammar)
    return counting(matcher, compiled.limits, engine.vocabulary, compiled.healed)


def validator_of(kind: str, text: str) -> Validator | None:
    """Return the final check of texts under a constraint; None for kinds that need none. Raises
    ``GrammarError``."""
    if kind == "json_schema":
        return FinalValidator(parse_schema(text))
    return ToolValidator(parse_tools(text)) if kind == "tools" else None


def compile_grammar(
    engine: LlguidanceEngine, spec: GrammarSpec
) -> tuple[Compiled, LlguidanceMatcher]:
    """Return a compiled constraint and a matcher at its start. Raises ``GrammarError``.

    Takes milliseconds to seconds, most of them without the interpreter lock.
    """
    check_text(spec)
    try:
        compiled, matcher = _compile(engine, spec)
    except EngineRefusal as error:
        raise GrammarError(refusal(spec.kind, spec.text, error.said)) from None
    if spec.finish == "valid":
        is_json = spec.kind in ("json_schema", "tools")
        try:
            shortest = shortest_close(
                matcher,
                engine.vocabulary,
                CLOSING_LIMIT,
                is_json=is_json,
                completer=None if spec.heal else compiled.completer,
            )
        except GrammarError:
            shortest = None
        if matcher.is_broken:  # the search ran into a limit: others shall not
            matcher = build(engine, compiled)
        if shortest is not None:
            compiled = replace(compiled, shortest=tuple(shortest))
    return replace(compiled, opening=tuple(matcher.forced())), matcher


def check_text(spec: GrammarSpec) -> None:
    """Raise ``GrammarError`` for a constraint that is too long, or no text."""
    if len(spec.text) > MAX_TEXT_LEN:
        raise GrammarError(
            f"{spec.kind}: {len(spec.text)} characters; a constraint has at most {MAX_TEXT_LEN}"
        )
    try:
        spec.text.encode()
        spec.heal.encode()
    except UnicodeEncodeError:
        raise GrammarError(f"{spec.kind}: it holds half a surrogate pair, no text") from None


def _compile(engine: LlguidanceEngine, spec: GrammarSpec) -> tuple[Compiled, LlguidanceMatcher]:
    if spec.kind == "json_schema":
        return _compile_schema(engine, spec)
    if spec.kind == "tools":
        tools = parse_tools(spec.text)
        grammar = lark_grammar(_healed(tools_grammar(tools, engine.vocabulary), spec))
        compiled = Compiled(grammar, is_enforced=False, validator=ToolValidator(tools), tools=tools)
        return compiled, build(engine, compiled)
    if spec.kind == "regex" and not spec.heal:
        grammar = regex_grammar(spec.text)
    else:
        grammar = lark_grammar(_healed(_lark(spec), spec))
    compiled = Compiled(grammar)
    return compiled, build(engine, compiled)


def _compile_schema(
    engine: LlguidanceEngine, spec: GrammarSpec
) -> tuple[Compiled, LlguidanceMatcher]:
    schema = compile_schema(
        engine,
        spec.text,
        strict=spec.strict,
        indent=spec.indent,
        any_order=spec.any_order,
        spaced=spec.spaced,
    )
    grammar = lark_grammar(_healed(schema.as_lark(), spec)) if spec.heal else schema.grammar
    compiled = Compiled(
        grammar,
        is_json=True,
        is_enforced=schema.is_enforced,
        keywords=schema.keywords,
        warnings=schema.warnings,
        limits=schema.limits,
        healed=len(spec.heal.encode()),
        validator=FinalValidator(schema.schema),
    )
    if spec.finish == "valid" and spec.indent is None:
        compiled = _with_outlook(compiled, schema, engine)
    if spec.heal:
        return compiled, build(engine, compiled)
    return compiled, schema.matcher


def _with_outlook(compiled: Compiled, schema: SchemaGrammar, engine: LlguidanceEngine) -> Compiled:
    blank = " " if schema.spaced else ""
    comma, colon = "," + blank, ":" + blank
    texts: dict[str, str] = {}
    completer = Completer(schema.normalised, PatternTexts(texts, engine), comma, colon)
    most_left = completer.most_left()
    outlook = Outlook(json.dumps(schema.normalised), texts, comma, colon, most_left)
    return replace(compiled, outlook=outlook, completer=completer)


def completer_of(outlook: Outlook | None) -> Completer | None:
    """Return what proposes ends of texts; it looks for nothing."""
    if outlook is None:
        return None
    texts = PatternTexts(outlook.pattern_texts)
    return Completer(json.loads(outlook.schema), texts, outlook.comma, outlook.colon)


def _lark(spec: GrammarSpec) -> str:
    if spec.kind == "regex":
        return f"start: {pattern(spec.text)}\n"
    if spec.kind == "choices":
        return choices_grammar(spec.text)
    if spec.kind in ("gbnf", "ebnf"):
        return to_lark(gbnf.parse(spec.text, spec.kind))
    if spec.kind == "free":
        return "start: /(?s:.*)/\n"
    return spec.text


def _healed(grammar: str, spec: GrammarSpec) -> str:
    return healed(grammar, spec.heal) if spec.heal else grammar
