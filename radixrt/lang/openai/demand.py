"""A constraint at an endpoint: how the request says it, and how the answer is held to it.

An endpoint that enforces a constraint is asked to; whatever it answers is checked all the same.
Where nothing enforces it, the answer's beginning that satisfies the constraint is taken, and an
answer without one is refused: the caller generates again.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import orjson

from radixrt.errors import Unsupported, ValueRefused
from radixrt.lang.openai.dialect import Dialect
from radixrt.lang.openai.json_layout import JsonLayout
from radixrt.lang.openai.strict import is_strict
from radixrt.protocol import Constraint

_VALUE = "value"
"""The key of a value that an endpoint can only generate inside of an object."""


@dataclass(frozen=True, slots=True)
class Demand:
    """A constraint as one endpoint takes it.

    ``fields`` go into the request. ``is_enforced``: the endpoint generates nothing else.
    ``is_wrapped``: it generates an object whose ``value`` is meant. ``is_exact``: its text is taken
    as it is.
    """

    constraint: Constraint
    fields: Mapping[str, Any] = field(default_factory=dict)
    is_enforced: bool = True
    is_wrapped: bool = False
    is_exact: bool = False

    @property
    def can_stream(self) -> bool:
        """Whether pieces of the text can be shown before its end."""
        return self.is_enforced and not self.is_wrapped and not self.constraint.exclude

    def layout(self) -> JsonLayout | None:
        """What lays out the text while it arrives; None when it stays as it is."""
        if self.is_exact or self.constraint.kind != "json_schema":
            return None
        return JsonLayout(indent=self.constraint.indent, spaced=self.constraint.spaced)

    def read(self, text: str, *, is_cut: bool) -> str:
        """Return the text that the branch gets; ``is_cut``: the endpoint ran out of tokens.

        Raises ``ValueRefused`` for one that breaks the constraint.
        """
        finish = self.constraint.finish or ("cut" if self.constraint.kind == "regex" else "valid")
        if self.is_wrapped:
            text = _unwrapped(text, is_cut, is_json=self.constraint.kind == "json_schema")
        if is_cut and finish == "cut":
            return text
        if not self.constraint.after:  # what stands before the marker is free
            checked = self._checked(text, is_cut)
            # A server that writes its values itself is checked all the same: something between us
            # may have dropped what was asked for.
            text = text if self.is_exact else checked
        if text in self.constraint.exclude:
            raise ValueRefused(f"{text!r} was refused before")
        return text

    def _checked(self, text: str, is_cut: bool) -> str:
        constraint = self.constraint
        match constraint.kind:
            case "regex":
                return _matching(constraint.text, text, whole=self.is_enforced)
            case "choices":
                options = orjson.loads(constraint.text)
                if self.is_exact and text not in options:
                    raise ValueRefused(f"{text[:200]!r} is none of the choices")
                return _option(options, text)
            case "json_schema":
                value = text if self.is_enforced else _first_value(text)
                _validate(constraint.text, value, is_cut)
                layout = self.layout()
                return value if layout is None else layout.feed(value)
            case _:
                if is_cut and not self.is_exact:
                    raise ValueRefused("it was cut off; raise max_tokens, or use finish='cut'")
                return text


def demand_of(constraint: Constraint, dialect: Dialect, *, is_chat: bool) -> Demand:
    """Return how an endpoint takes a constraint (any but tools). Raises ``Unsupported``."""
    if dialect.constraints == "radixrt":
        return Demand(constraint, {"constraint": _as_json(constraint)}, is_exact=True)
    for name, way_out in (
        ("fields", "sample all of the value alike"),
        ("after", "generate the text up to the marker first, by a gen with stop="),
    ):
        if getattr(constraint, name):
            raise Unsupported(
                f"{name}= of gen cannot be said to an OpenAI endpoint; {way_out}, or use a radixrt "
                "runtime"
            )
    fields = _said(constraint, dialect)
    if fields is not None:
        return Demand(constraint, fields)
    if constraint.kind in ("grammar", "gbnf", "ebnf"):
        raise Unsupported(
            f"a grammar ({constraint.kind}) can neither be said to this endpoint (dialect "
            f"{dialect.name}) nor checked; use a regex or a JSON schema, or name the server's "
            "dialect= (vllm; sglang for ebnf)"
        )
    if is_chat:
        return _by_response_format(constraint)
    if constraint.kind == "regex" and _compiled(constraint.text) is None:
        raise Unsupported(
            f"regex={constraint.text[:200]!r}: nothing enforces it at /completions in dialect "
            f"{dialect.name}, and Python cannot read it; write it in Python's dialect, or use roles"
        )
    if constraint.strict:
        raise Unsupported(
            f"strict=True: nothing enforces a schema at /completions in dialect {dialect.name}; "
            "use roles, or leave strict out to have values checked"
        )
    return Demand(constraint, is_enforced=False)


def _as_json(constraint: Constraint) -> Any:
    return orjson.loads(orjson.dumps(constraint))


def _said(constraint: Constraint, dialect: Dialect) -> dict[str, Any] | None:
    """The fields of vLLM or SGLang for a constraint; None when the dialect has none."""
    text = constraint.text
    if dialect.constraints == "vllm":
        match constraint.kind:
            case "regex":
                return {"structured_outputs": {"regex": text}}
            case "choices":
                return {"structured_outputs": {"choice": orjson.loads(text)}}
            case "json_schema":
                return {"structured_outputs": {"json": orjson.loads(text)}}
            case _:
                return {"structured_outputs": {"grammar": text}}
    if dialect.constraints == "sglang":
        match constraint.kind:
            case "regex":
                return {"regex": text}
            case "choices":
                options = (re.escape(option) for option in orjson.loads(text))
                return {"regex": f"({'|'.join(options)})"}
            case "json_schema":
                return {"json_schema": text}
            case "gbnf" | "ebnf":
                return {"ebnf": text}
    return None


def _by_response_format(constraint: Constraint) -> Demand:
    """OpenAI's own way. A schema's root is an object there, so other values are wrapped in one."""
    match constraint.kind:
        case "regex":
            inner: Any = {"type": "string", "pattern": _anchored(constraint.text)}
        case "choices":
            inner = {"type": "string", "enum": orjson.loads(constraint.text)}
        case _:
            inner = orjson.loads(constraint.text)
    is_object = constraint.kind == "json_schema" and _is_object(inner)
    if not is_object:
        definitions = inner.pop("$defs", None) if isinstance(inner, dict) else None
        inner = {
            "type": "object",
            "properties": {_VALUE: inner},
            "required": [_VALUE],
            "additionalProperties": False,
        }
        if definitions is not None:
            inner["$defs"] = definitions
    strict = constraint.strict or is_strict(inner)
    schema = {"name": _VALUE, "schema": inner, "strict": strict}
    response_format = {"type": "json_schema", "json_schema": schema}
    return Demand(constraint, {"response_format": response_format}, is_wrapped=not is_object)


def _is_object(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "object"


def _anchored(pattern: str) -> str:
    return f"^(?:{pattern})$"


# ---------------------------------------------------------------- holding an answer to it


def _unwrapped(text: str, is_cut: bool, *, is_json: bool) -> str:
    try:
        value = json.loads(text)[_VALUE]
    except (ValueError, LookupError, TypeError):
        why = "it was cut off; raise max_tokens" if is_cut else "the endpoint ignored the format"
        raise ValueRefused(f"{text[:200]!r} is not {{{_VALUE!r}: …}}: {why}") from None
    return json.dumps(value, ensure_ascii=False) if is_json else str(value)


def _matching(pattern: str, text: str, *, whole: bool) -> str:
    compiled = _compiled(pattern)
    if compiled is None:
        return text
    found = compiled.fullmatch(text) if whole else compiled.match(text)
    if found is None or not (found[0] or compiled.fullmatch("")):
        raise ValueRefused(f"{text[:200]!r} does not match {pattern[:200]}")
    return found[0]


_SETS = re.compile(r"\[\[|\[[^\]]*(?:&&|--|~~|\|\|)")
"""What begins sets within sets, which Python reads as something else."""


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """The pattern; None when it is written in a dialect that Python does not know, so that only
    the endpoint can hold to it."""
    if _SETS.search(pattern):
        return None
    try:
        return re.compile(pattern)
    except re.error:
        return None


def _option(options: list[str], text: str) -> str:
    """The longest option that the text begins with, a blank before it aside."""
    for candidate in (text, text.lstrip()):
        fitting = [option for option in options if candidate.startswith(option)]
        if fitting:
            return max(fitting, key=len)
    # An option that begins with a blank is a word of the text; a chat model writes no blank.
    bare = [option for option in options if text.strip().startswith(option.strip())]
    if not bare:
        raise ValueRefused(f"{text[:200]!r} is none of the choices")
    return max(bare, key=len)


def _first_value(text: str) -> str:
    """The first JSON value of a text, without what a model writes around it."""
    decoder = json.JSONDecoder()
    start = len(text) - len(text.lstrip())
    brackets = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    for begin in (start, *sorted(brackets)):
        try:
            _, end = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError):
            continue
        return text[begin:end]
    raise ValueRefused(f"{text[:200]!r} holds no JSON value")


def _validate(schema: str, text: str, is_cut: bool) -> None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        why = "it was cut off; raise max_tokens" if is_cut else "it is not JSON"
        raise ValueRefused(f"{text[:200]!r}: {why}") from None
    try:
        error = next(iter(_validator(schema).iter_errors(value)), None)
    except (re.error, RecursionError):  # a pattern of another dialect: the endpoint's affair
        return
    if error is not None:
        raise ValueRefused(f"{text[:200]} is not valid: {error.message[:200]}")


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    parsed = orjson.loads(schema)
    return jsonschema.validators.validator_for(parsed, jsonschema.Draft202012Validator)(parsed)
