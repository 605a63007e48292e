"""What becomes of every keyword of a JSON schema: enforced, checked or ignored."""

from __future__ import annotations

import json
import re
from typing import Any, Literal, NamedTuple

from radixrt.runtime.grammar.normalise import FORMATS, subschemas

Status = Literal["enforced", "checked", "ignored"]

_ASSERTION_NAMES = """
    type enum const multipleOf maximum exclusiveMaximum minimum exclusiveMinimum maxLength
    minLength pattern maxItems minItems uniqueItems contains minContains maxContains maxProperties
    minProperties required dependentRequired dependentSchemas dependencies properties
    patternProperties additionalProperties propertyNames items prefixItems additionalItems
    unevaluatedItems unevaluatedProperties allOf anyOf oneOf not if then else format $ref
    $dynamicRef $recursiveRef contentEncoding contentMediaType contentSchema
"""
_ASSERTIONS = frozenset(_ASSERTION_NAMES.split())
_UNIMPLEMENTED = re.compile(r"Unimplemented keys: (\[.*\])")


class Keyword(NamedTuple):
    """A keyword at ``pointer``, the JSON pointer of the schema object that has it."""

    pointer: str
    keyword: str
    status: Status


def report(
    schema: Any, normalised: Any, warnings: list[str], checked: set[str]
) -> tuple[Keyword, ...]:
    """Return every asserting keyword of a schema with its status.

    ``normalised`` is what the engine compiled with ``warnings`` about keywords that it left out;
    ``checked`` are pointers (with the keyword) that were left out for the final validation.
    """
    left_out = _left_out(warnings)
    remaining = {(pointer, key) for pointer, node in _walk(normalised) for key in node}
    keywords = []
    for pointer, node in _walk(schema):
        for key in node:
            if key not in _ASSERTIONS:
                continue
            status: Status = "enforced"
            if key == "format":
                status = "enforced" if node[key] in FORMATS else "ignored"
            elif key.startswith("content"):
                status = "ignored"
            elif f"{pointer}/{key}" in checked or (
                key in left_out and ((pointer, key) in remaining or key == "dependencies")
            ):
                status = "checked"
            keywords.append(Keyword(pointer, key, status))
    return tuple(keywords)


def _left_out(warnings: list[str]) -> set[str]:
    keys: set[str] = set()
    for warning in warnings:
        found = _UNIMPLEMENTED.search(warning)
        if found is not None:
            keys.update(json.loads(found.group(1)))
        elif warning.startswith("oneOf"):
            keys.add("oneOf")
        elif not warning.startswith("Unknown format"):
            keys |= {key for key in _ASSERTIONS if re.search(rf"\b{re.escape(key)}\b", warning)}
    if "if" in keys:
        keys |= {"then", "else"}
    return keys


def _walk(schema: Any, pointer: str = "") -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(schema, dict):
        return []
    found = [(pointer, schema)]
    for suffix, inner in subschemas(schema):
        found += _walk(inner, pointer + suffix)
    return found
