"""What a text has to match, in the dialects of OpenAI, vLLM and SGLang.

Every dialect becomes one ``Constraint``. What is asked for is enforced or refused, never ignored:
two constraints at once, a kind that there is not, and options that would change the language are
errors of the request.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import orjson

from radixrt.gateway.errors import ApiError, invalid
from radixrt.gateway.fields import SamplingFields
from radixrt.protocol import Constraint

_RULE_GBNF = re.compile(r"^\s*[A-Za-z_][\w-]*\s*::=", re.MULTILINE)

_ANY_OBJECT = '{"type":"object"}'

_HARMLESS = frozenset(
    {"disable_fallback", "disable_any_whitespace", "disable_additional_properties", "_backend"}
)
"""Options of vLLM that choose how it enforces, where what is enforced is the same here."""


def constraint_of(request: SamplingFields) -> Constraint | None:
    """Return what binds the text of a request, None for nothing. Raises ``ApiError``."""
    found = [
        (name, constraint)
        for name, read in _READERS.items()
        if (value := getattr(request, name)) is not None
        and (constraint := read(name, value)) is not None
    ]
    # A client may say one thing in the words of several versions of a server.
    if len({constraint for _, constraint in found}) > 1:
        names = " and ".join(name for name, _ in found)
        raise invalid(found[1][0], f"{names} exclude each other; give one", "conflict")
    return found[0][1] if found else None


def _response_format(name: str, value: dict[str, Any]) -> Constraint | None:
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return _schema(name, value.get("schema") or _ANY_OBJECT)
        case "json_schema":
            wrapped = value.get("json_schema")
            # vLLM and llama.cpp also take the schema without OpenAI's wrapping.
            schema = wrapped.get("schema") if isinstance(wrapped, dict) else value.get("schema")
            if schema is None:
                raise invalid(f"{name}.json_schema.schema", "this field is required")
            return _schema(f"{name}.json_schema.schema", schema)
        case "regex":
            return _text("regex")(f"{name}.pattern", value.get("pattern"))
        case "grammar":
            return _grammar(f"{name}.grammar", value.get("grammar"))
        case kind:
            raise invalid(
                f"{name}.type",
                f"{str(kind)[:60]!r} is not supported; use text, json_object or json_schema",
                "unsupported",
            )


def _structured_outputs(name: str, value: dict[str, Any]) -> Constraint | None:
    given = {key: item for key, item in value.items() if item is not None and item is not False}
    found: list[Constraint] = []
    for key, item in given.items():
        if key in _HARMLESS:
            continue
        read = _STRUCTURED.get(key)
        if read is None:
            raise invalid(f"{name}.{key}", "this is not supported", "unsupported")
        constraint = read(f"{name}.{key}", item)
        if constraint is not None:
            found.append(constraint)
    if len(found) > 1:
        raise invalid(name, f"{', '.join(given)} exclude each other; give one", "conflict")
    if not found:
        raise invalid(name, f"give one of {', '.join(_STRUCTURED)}")
    return found[0]


def _schema(name: str, value: Any) -> Constraint:
    """A schema, as an object or as its text."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise invalid(name, f"the schema is not JSON: {error}") from None
    if not isinstance(value, dict | bool):
        raise invalid(name, "use a JSON schema: an object")
    return Constraint("json_schema", orjson.dumps(value).decode())


def _json_object(name: str, value: Any) -> Constraint | None:
    return _schema(name, _ANY_OBJECT) if value else None


def _choices(name: str, value: Any) -> Constraint:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise invalid(name, "use a list of at least one string")
    return Constraint("choices", orjson.dumps(value).decode())


def _grammar(name: str, value: Any) -> Constraint:
    """A grammar of vLLM's: a GBNF where it defines rules with ``::=``, else one of Lark."""
    if not isinstance(value, str) or not value.strip():
        raise invalid(name, "use the text of a grammar")
    return Constraint("gbnf" if _RULE_GBNF.search(value) else "grammar", value)


def _text(kind: Any) -> Callable[[str, Any], Constraint]:
    def read(name: str, value: Any) -> Constraint:
        if not isinstance(value, str) or not value:
            raise invalid(name, "use a text that is not empty")
        return Constraint(kind, value)

    return read


def _own(name: str, value: dict[str, Any]) -> Constraint:
    """The protocol's own form."""
    unknown = value.keys() - Constraint.__dataclass_fields__.keys()
    if unknown:
        raise invalid(f"{name}.{min(unknown)[:60]}", "there is no such field")
    try:
        return msgspec.convert(value, Constraint)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"{name}: {error}", name, "invalid_type") from None


def _refused(name: str, value: Any) -> Constraint:
    raise invalid(name, "this is not supported; leave it out", "unsupported")


_STRUCTURED: dict[str, Callable[[str, Any], Constraint | None]] = {
    "json": _schema,
    "json_object": _json_object,
    "regex": _text("regex"),
    "choice": _choices,
    "grammar": _grammar,
}

_READERS: dict[str, Callable[[str, Any], Constraint | None]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _schema,
    "guided_json_object": _json_object,
    "guided_regex": _text("regex"),
    "guided_choice": _choices,
    "guided_grammar": _grammar,
    "guided_whitespace_pattern": _refused,
    "regex": _text("regex"),
    "ebnf": _text("ebnf"),
    "json_schema": _schema,
    "grammar": _grammar,
    "structural_tag": _refused,
    "constraint": _own,
}
"""Field of a request → what reads it."""
