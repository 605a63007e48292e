"""Exact rewritings that need more than one place of a schema: what ``oneOf`` leaves of its
alternatives' types, and values that are listed."""

from __future__ import annotations

from typing import Any

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.json_text import resolve
from radixrt.runtime.grammar.validate import FinalValidator

Schema = dict[str, Any]

MOST_VALUES = 64
"""Listed values of one schema that are validated one by one."""

_TYPES = ("null", "boolean", "object", "array", "number", "string")
_NOTES = frozenset(
    (
        *("title", "description", "default", "examples", "$comment", "comment", "deprecated"),
        *("readOnly", "writeOnly", "$schema", "$id", "id", "$defs", "definitions"),
    )
)
_LISTING = ("oneOf", "anyOf", "allOf", "not", "if")
_ABOUT = {
    "object": """properties required additionalProperties patternProperties propertyNames
        minProperties maxProperties dependentRequired dependentSchemas dependencies
        unevaluatedProperties""",
    "array": """items prefixItems additionalItems minItems maxItems uniqueItems contains minContains
        maxContains unevaluatedItems""",
    "string": "minLength maxLength pattern format",
    "number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
}
_TYPE_OF = {keyword: kind for kind, names in _ABOUT.items() for keyword in names.split()}


def narrow(schema: Schema, root: Any) -> None:
    """Rewrite a schema within ``root`` in place, into one with the same valid values."""
    if "$ref" in schema:
        return  # what stands beside a reference counts in some drafts only
    _drop_shared_types(schema, root)
    _keep_valid_values(schema, root)


def _drop_shared_types(schema: Schema, root: Any) -> None:
    """A value that two alternatives of ``oneOf`` allow for its type alone is not valid."""
    options = schema.get("oneOf")
    if not isinstance(options, list) or len(options) < 2:
        return
    resolved = [_resolved(option, root) for option in options]
    shared = {kind for kind in _TYPES if sum(_allows_all(o, kind) for o in resolved) > 1}
    named = schema.get("type", [*_TYPES])
    kinds = named if isinstance(named, list) else [named]
    left = [kind for kind in kinds if ("number" if kind == "integer" else kind) not in shared]
    if left and len(left) < len(kinds):
        schema["type"] = left[0] if len(left) == 1 else left


def _allows_all(schema: Any, kind: str) -> bool:
    """Whether a schema certainly allows every value of a type."""
    if schema is True:
        return True
    if not isinstance(schema, dict):
        return False
    kinds = schema.get("type", kind)
    if kind not in (kinds if isinstance(kinds, list) else [kinds]):
        return False
    asserting = schema.keys() - _NOTES - {"type"}
    return all(_TYPE_OF.get(keyword, kind) != kind for keyword in asserting)


def _keep_valid_values(schema: Schema, root: Any) -> None:
    """A schema whose alternatives list their values is the list of those that are valid."""
    if not any(keyword in schema for keyword in _LISTING):
        return
    values = _values(schema, root, 0)
    if values is None or not 0 < len(values) <= MOST_VALUES:
        return
    around = {key: root[key] for key in ("$schema", "$defs", "definitions") if key in root}
    validator = FinalValidator({**around, **schema})
    try:
        valid = [value for value in values if validator.is_valid(value)]
    except GrammarError:
        return
    if valid:
        for key in schema.keys() - _NOTES:
            del schema[key]
        schema["enum"] = valid


def _values(schema: Any, root: Any, depth: int) -> list[Any] | None:
    """Return values that all of a schema's are among; None where they are not listed."""
    schema = _resolved(schema, root)
    if not isinstance(schema, dict) or depth > 8:
        return None
    if "const" in schema:
        return [schema["const"]]
    if isinstance(schema.get("enum"), list):
        return [*schema["enum"]]
    for keyword in ("oneOf", "anyOf"):
        if isinstance(schema.get(keyword), list):
            found = [_values(option, root, depth + 1) for option in schema[keyword]]
            known = [values for values in found if values is not None]
            if len(known) == len(found):
                return _distinct([value for values in known for value in values])
    for part in schema.get("allOf", ()) if isinstance(schema.get("allOf"), list) else ():
        values = _values(part, root, depth + 1)
        if values is not None:
            return values
    return None


def _distinct(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values[: MOST_VALUES + 1]:
        if not any(value == other and type(value) is type(other) for other in found):
            found.append(value)
    return found if len(values) <= MOST_VALUES else values


def _resolved(schema: Any, root: Any) -> Any:
    """Follow references that stand alone."""
    for _ in range(16):
        if not isinstance(schema, dict) or schema.keys() - _NOTES != {"$ref"}:
            return schema
        schema = resolve(root, schema["$ref"])
    return None
