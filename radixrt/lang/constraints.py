"""From what a program writes (``regex=``, ``type=``, ``tools=``) to the protocol's constraint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from radixrt.errors import InvalidArgument
from radixrt.lang.reading import Reading, TypeReading, result_type
from radixrt.lang.sampling import check_text, sampling_options
from radixrt.lang.toolset import ToolFormat, tool_set
from radixrt.protocol import Constraint, FieldSampling

Syntax = Literal["lark", "gbnf", "ebnf"]
Finish = Literal["valid", "cut"]

_END_OF_REASONING = "</think>"
_FIELD_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "max_tokens")
_MAX_RETRIES = 32


@dataclass(frozen=True, slots=True)
class How:
    """The options that say how a constraint is applied. None means not given."""

    finish: Finish | None = None
    strict: bool | None = None
    indent: int | None = None
    any_order: bool | None = None
    retries: int | None = None
    after: str | None = None
    reasoning: bool | None = None
    fields: Mapping[str, Mapping[str, Any]] | None = None
    jump_forward: bool | None = None
    spaced: bool | None = None

    def apply(self, kind: Any, text: str) -> Constraint:
        """Return the constraint. Raises ``InvalidArgument`` for an option that cannot be used."""
        if self.finish not in (None, "valid", "cut"):
            raise InvalidArgument("finish", self.finish, "use valid or cut")
        retries = 3 if self.retries is None else self.retries
        if (
            isinstance(retries, bool)
            or not isinstance(retries, int)
            or not 0 <= retries <= _MAX_RETRIES
        ):
            raise InvalidArgument("retries", retries, f"use 0 to {_MAX_RETRIES}")
        indent = self.indent
        if indent is not None and (isinstance(indent, bool) or not isinstance(indent, int)):
            raise InvalidArgument("indent", indent, "use a whole number, or None for compact JSON")
        if indent is not None and not 0 <= indent <= 16:
            raise InvalidArgument("indent", indent, "use 0 to 16")
        return Constraint(
            kind,
            text,
            finish=self.finish,
            strict=_flag("strict", self.strict, False),
            indent=indent,
            any_order=_flag("any_order", self.any_order, False),
            retries=retries,
            after=self.marker,
            fields=field_sampling(self.fields),
            jump_forward=_flag("jump_forward", self.jump_forward, True),
            spaced=_flag("spaced", self.spaced, False),
        )

    @property
    def marker(self) -> str:
        """The text after which the constraint begins."""
        if self.after is not None:
            if not isinstance(self.after, str) or not self.after:
                raise InvalidArgument("after", self.after, f"use text such as {_END_OF_REASONING}")
            if self.reasoning is not None:
                raise InvalidArgument("after", self.after, "leave reasoning out: it sets after")
            return check_text("after", self.after)
        return _END_OF_REASONING if _flag("reasoning", self.reasoning, False) else ""

    def require_none(self, way_out: str) -> None:
        """Raise ``InvalidArgument`` for the first option that is given."""
        for name in self.__dataclass_fields__:
            if (value := getattr(self, name)) is not None:
                raise InvalidArgument(name, value, way_out)


@dataclass(frozen=True, slots=True)
class What:
    """The argument that says what is generated. At most one is given, or a type and tools."""

    regex: str | re.Pattern[str] | None = None
    json_schema: Any = None
    grammar: str | None = None
    syntax: Syntax | None = None
    type: Any = None
    is_typed: bool = False
    tools: Any = None
    tool_choice: str | None = None
    tool_format: ToolFormat | None = None
    parallel: bool | None = None

    def build(self, how: How) -> tuple[Constraint | None, Reading | None]:
        """Return the constraint and how its outputs are read; None for free text."""
        given = self._given()
        if len(given) > 1 and given != ["tools", "type"]:
            others = " and ".join(given[1:])
            raise InvalidArgument(given[0], getattr(self, given[0]), f"leave out {others}")
        if self.syntax is not None and self.grammar is None:
            raise InvalidArgument("syntax", self.syntax, "it says how grammar= is written")
        if self.tools is None:
            for name in ("tool_choice", "tool_format", "parallel"):
                if (value := getattr(self, name)) is not None:
                    raise InvalidArgument(name, value, "give tools= with it")
        if not given:
            how.require_none(
                "give a constraint with it: type, json_schema, regex, grammar or tools"
            )
            return None, None
        if self.regex is not None:
            return how.apply("regex", pattern_text("regex", self.regex)), None
        if self.json_schema is not None:
            return how.apply("json_schema", schema_text(self.json_schema)), None
        if self.grammar is not None:
            return how.apply(*grammar_kind(self.grammar, self.syntax)), None
        if self.tools is not None:
            return self._tools(how)
        result = result_type(self.type)
        return how.apply("json_schema", result.schema), TypeReading(result, how.marker)

    def refuse_beside(self, argument: str, value: object, *others: str) -> None:
        """Raise ``InvalidArgument`` when anything is given beside ``argument``."""
        given = [*others, *self._given()]
        if given:
            raise InvalidArgument(argument, value, f"leave out {' and '.join(given)}")

    def _given(self) -> list[str]:
        names = ("regex", "json_schema", "grammar", "tools")
        given = [name for name in names if getattr(self, name) is not None]
        return [*given, "type"] if self.is_typed else given

    def _tools(self, how: How) -> tuple[Constraint, Reading]:
        answer = result_type(self.type) if self.is_typed else None
        tools = tool_set(self.tools, how.marker, answer)
        choice = "auto" if self.tool_choice is None else self.tool_choice
        if choice not in ("auto", "required") and choice not in tools.tools:
            known = ", ".join(tools.tools)
            raise InvalidArgument("tool_choice", choice, f"use auto, required, or one of {known}")
        if answer is not None and choice != "auto":
            raise InvalidArgument("tool_choice", choice, "leave it auto, or leave out type")
        style = self.tool_format or "auto"
        if style not in ("auto", "hermes", "llama", "mistral"):
            raise InvalidArgument("tool_format", style, "use auto, hermes, llama or mistral")
        text = tools.constraint_text(choice, style, _flag("parallel", self.parallel, True))
        return how.apply("tools", text), tools


def option(value: Any) -> str | Constraint:
    """Return an option of ``select``: text as it is, a compiled regex or a type as a constraint."""
    if isinstance(value, str):
        if not value:
            raise InvalidArgument("choices", value, "leave the empty string out")
        return check_text("choices", value)
    if isinstance(value, re.Pattern):
        return Constraint("regex", pattern_text("choices", value), finish="valid")
    return Constraint("json_schema", result_type(value).schema)


def pattern_text(argument: str, pattern: Any) -> str:
    """Return the text of a regular expression, compiled or not."""
    if isinstance(pattern, re.Pattern):
        if pattern.flags & ~re.UNICODE:
            raise InvalidArgument(argument, pattern, "write its flags into it: (?i)…, (?s)…")
        pattern = pattern.pattern
    if not isinstance(pattern, str) or not pattern:
        raise InvalidArgument(argument, pattern, "use a non-empty string")
    return check_text(argument, pattern)


def schema_text(schema: Any) -> str:
    """Return the text of a JSON schema: given as text, as a mapping or as a pydantic model."""
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    try:
        if isinstance(schema, Mapping | bool):
            return orjson.dumps(dict(schema) if isinstance(schema, Mapping) else schema).decode()
        if not isinstance(schema, str) or not schema:
            raise InvalidArgument("json_schema", schema, "use a mapping or JSON text")
        orjson.loads(check_text("json_schema", schema))
    except (TypeError, orjson.JSONDecodeError) as error:
        raise InvalidArgument("json_schema", schema, f"it is not JSON: {error}") from None
    return schema


def grammar_kind(grammar: Any, syntax: Any) -> tuple[Literal["grammar", "gbnf", "ebnf"], str]:
    """Return a grammar's kind and text.

    Without ``syntax`` a grammar whose rules are written ``name ::= …`` is GBNF, which SGLang's EBNF
    is but another name for, and any other is Lark; one that has both is refused.
    """
    if not isinstance(grammar, str) or not grammar.strip():
        raise InvalidArgument("grammar", grammar, "use a non-empty string")
    check_text("grammar", grammar)
    if syntax is not None:
        kinds: dict[Any, Literal["grammar", "gbnf", "ebnf"]] = {
            "lark": "grammar",
            "gbnf": "gbnf",
            "ebnf": "ebnf",
        }
        if syntax not in kinds:
            raise InvalidArgument("syntax", syntax, "use lark, gbnf or ebnf")
        return kinds[syntax], grammar
    bare = re.sub(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|\[(?:[^\]\\\n]|\\.)*\]', '""', grammar)
    bare = re.sub(r"(?://|#).*", "", bare)
    is_bnf = re.search(r"^\s*[\w-]+\s*::=", bare, re.M) is not None
    is_lark = re.search(r"^\s*[?!]?\w+(?:\.\d+)?(?:\[[^\]]*\])?\s*:(?!:=)", bare, re.M) is not None
    if is_bnf == is_lark:
        raise InvalidArgument(
            "grammar", grammar, "say how it is written: syntax=lark, gbnf or ebnf"
        )
    return ("gbnf" if is_bnf else "grammar"), grammar


def field_sampling(given: Mapping[str, Mapping[str, Any]] | None) -> tuple[FieldSampling, ...]:
    """Return the sampling of single fields, from ``{"/pointer": {"temperature": …}}``."""
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise InvalidArgument("fields", given, 'use {"/pointer": {"temperature": 0.8}}')
    fields = []
    for pointer, options in given.items():
        if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")):
            raise InvalidArgument("fields", pointer, "use JSON pointers: /name, /items/*/price")
        if not isinstance(options, Mapping):
            raise InvalidArgument(f"fields[{pointer}]", options, "use a mapping of options")
        unknown = options.keys() - set(_FIELD_OPTIONS)
        if unknown:
            way_out = f"use {', '.join(_FIELD_OPTIONS)}"
            raise InvalidArgument(f"fields[{pointer}]", min(unknown), way_out)
        checked = sampling_options(**options)
        values = {name: getattr(checked, name) for name in _FIELD_OPTIONS}
        fields.append(FieldSampling(pointer, **values))
    return tuple(fields)


def _flag(name: str, value: object, default: bool) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidArgument(name, value, "use True or False")
    return value
