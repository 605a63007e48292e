"""Exact rewritings of JSON schemas into keywords that the engine enforces.

Each keeps the set of valid values as it is; what has no exact rewriting is left alone. Rewritten
keywords disappear from the schema, so what the engine then reports is what is really not enforced.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.narrowing import narrow

Schema = dict[str, Any]

MAX_DEPTH = 100
"""Levels of nesting of a schema; the engine's own parser stops at 128."""

FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
"""Formats that the engine enforces. All others are annotations, as the standard has them."""

_TYPES = ("null", "boolean", "object", "array", "number", "string")
_OF_TYPE = {
    "array": ("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"),
    "object": (
        *("propertyNames", "dependencies", "dependentRequired", "dependentSchemas"),
        *("unevaluatedProperties",),
    ),
}
_SCHEMAS = (
    *("additionalProperties", "additionalItems", "items", "contains", "not", "if", "then", "else"),
    *("propertyNames", "unevaluatedItems", "unevaluatedProperties"),
)
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "items", "prefixItems")
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def normalise(schema: Any) -> Any:
    """Return an equivalent schema with fewer keywords that the engine lacks; the given one stays
    as it is. Raises ``GrammarError`` for one that is nested too deeply."""
    return _node(schema, 0, schema)


def subschemas(schema: Schema) -> list[tuple[str, Any]]:
    """Return the schemas directly inside a schema, each with its JSON pointer from there."""
    found: list[tuple[str, Any]] = []
    for key in _SCHEMAS:
        if isinstance(schema.get(key), dict | bool):
            found.append((f"/{key}", schema[key]))
    for key in _SCHEMA_LISTS:
        if isinstance(schema.get(key), list):
            found += [(f"/{key}/{index}", item) for index, item in enumerate(schema[key])]
    for key in (*_SCHEMA_MAPS, "dependencies"):
        if isinstance(schema.get(key), dict):
            for name, value in schema[key].items():
                if isinstance(value, dict | bool):
                    escaped = name.replace("~", "~0").replace("/", "~1")
                    found.append((f"/{key}/{escaped}", value))
    return found


def _node(schema: Any, depth: int, root: Any) -> Any:
    if depth > MAX_DEPTH:
        raise GrammarError(f"json_schema: nested more than {MAX_DEPTH} levels")
    if not isinstance(schema, dict):
        return schema
    new = dict(schema)
    for key in _SCHEMAS:
        if isinstance(new.get(key), dict):
            new[key] = _node(new[key], depth + 1, root)
    for key in _SCHEMA_LISTS:
        if isinstance(new.get(key), list):
            new[key] = [_node(item, depth + 1, root) for item in new[key]]
    for key in (*_SCHEMA_MAPS, "dependencies"):
        if isinstance(new.get(key), dict):
            new[key] = {name: _node(value, depth + 1, root) for name, value in new[key].items()}
    for rewrite in _REWRITES:
        rewrite(new)
    narrow(new, root)
    return new


def _drop_formats(schema: Schema) -> None:
    if isinstance(schema.get("format"), str) and schema["format"] not in FORMATS:
        del schema["format"]


def _split_dependencies(schema: Schema) -> None:
    """Draft 4 to 7 have one keyword for what are two since."""
    dependencies = schema.get("dependencies")
    if not isinstance(dependencies, dict):
        return
    del schema["dependencies"]
    for name, value in dependencies.items():
        if isinstance(value, str):
            value = [value]
        key = "dependentRequired" if isinstance(value, list) else "dependentSchemas"
        schema[key] = {**schema.get(key, {}), name: value}


def _drop_of_other_types(schema: Schema) -> None:
    """A keyword about arrays says nothing about a string."""
    kinds = _kinds(schema)
    if kinds is None:
        return
    for kind, keywords in _OF_TYPE.items():
        if kind not in kinds:
            for keyword in keywords:
                schema.pop(keyword, None)


def _drop_trivial(schema: Schema) -> None:
    if schema.get("uniqueItems") is False or _max_items(schema) <= 1:
        schema.pop("uniqueItems", None)
    if schema.get("propertyNames") in (True, {}, {"type": "string"}):
        schema.pop("propertyNames", None)
    if schema.get("contains") in (True, {}) and "maxContains" not in schema:
        least = max(schema.get("minContains", 1), schema.get("minItems", 0))
        del schema["contains"]
        schema.pop("minContains", None)
        if least:
            schema["minItems"] = least
    if "contains" not in schema:
        schema.pop("minContains", None)
        schema.pop("maxContains", None)
    for key in ("unevaluatedProperties", "unevaluatedItems"):
        if schema.get(key) in (True, {}):
            del schema[key]
    if schema.get("unevaluatedProperties") is False and not _has_applicators(schema):
        del schema["unevaluatedProperties"]
        schema.setdefault("additionalProperties", False)
    for key in ("dependentRequired", "dependentSchemas"):
        if schema.get(key) == {}:
            del schema[key]
    if "if" not in schema or ("then" not in schema and "else" not in schema):
        for key in ("if", "then", "else"):
            schema.pop(key, None)


def _name_pattern(schema: Schema) -> None:
    """A pattern of all names, where no name is listed, is a pattern of properties."""
    names = schema.get("propertyNames")
    if not isinstance(names, dict) or schema.get("properties") or schema.get("patternProperties"):
        return
    rest = {key for key in names if key not in ("type", "pattern", "enum", "const")}
    if rest or names.get("type", "string") != "string" or len(set(names) - {"type"}) != 1:
        return
    value = schema.get("additionalProperties", True)
    del schema["propertyNames"]
    schema["additionalProperties"] = False
    if "pattern" in names:
        schema["patternProperties"] = {names["pattern"]: value}
        return
    allowed = names["enum"] if "enum" in names else [names["const"]]
    schema["properties"] = {name: value for name in allowed if isinstance(name, str)}


def _depend(schema: Schema) -> None:
    """``a`` needs ``b``: either ``a`` is missing, or both are there."""
    needs = schema.get("dependentRequired")
    if isinstance(needs, dict) and all(isinstance(value, list) for value in needs.values()):
        del schema["dependentRequired"]
        for name, others in needs.items():
            _either(schema, _without([name]), {"required": [name, *others]}, name)
    schemas = schema.get("dependentSchemas")
    if isinstance(schemas, dict):
        del schema["dependentSchemas"]
        for name, other in schemas.items():
            both = {"required": [name]}
            present = both if other in (True, {}) else {"allOf": [both, other]}
            _either(schema, _without([name]), present, name)


def _either(schema: Schema, absent: Schema, present: Schema, name: str) -> None:
    if name in schema.get("required", ()):
        _all_of(schema, present)
    else:
        _all_of(schema, {"anyOf": [absent, present]})


def _decide(schema: Schema) -> None:
    """``if`` one property has one of some values: the values split into two lists."""
    if "if" not in schema:
        return
    condition = schema["if"]
    then, otherwise = schema.get("then", True), schema.get("else", True)
    if condition in (True, {}):
        branches = [then]
    elif condition is False:
        branches = [otherwise]
    else:
        split = _split(schema, condition)
        if split is None:
            return
        yes, no = split
        branches = [_both(yes, then), *(_both(part, otherwise) for part in no)]
    for key in ("if", "then", "else"):
        schema.pop(key, None)
    _all_of(schema, branches[0] if len(branches) == 1 else {"anyOf": branches})


def _split(schema: Schema, condition: Any) -> tuple[Schema, list[Schema]] | None:
    """Return a schema of the values that meet a condition on one listed property, and schemas of
    those that do not; None when it is no such condition."""
    if not isinstance(condition, dict) or set(condition) - {"properties", "required", "type"}:
        return None
    if condition.get("type", "object") != "object" or _kinds(schema) != {"object"}:
        return None
    required = condition.get("required", [])
    properties = condition.get("properties", {})
    if not properties and len(required) == 1:
        return {"required": required}, [_without(required)]
    if len(properties) != 1:
        return None
    ((name, test),) = properties.items()
    wanted = _values(test)
    listed = _values(schema.get("properties", {}).get(name))
    if wanted is None or listed is None or set(required) - {name}:
        return None
    yes: Schema = {"properties": {name: {"enum": [v for v in listed if _in(v, wanted)]}}}
    no: Schema = {
        "properties": {name: {"enum": [v for v in listed if not _in(v, wanted)]}},
        "required": [name],
    }
    if required:
        return {**yes, "required": [name]}, [no, _without([name])]
    # Without ``required`` a missing property meets the condition.
    return yes, [no]


def _negate(schema: Schema) -> None:
    """``not`` of values, types or single properties."""
    if "not" not in schema:
        return
    negated = schema["not"]
    if negated is False:
        del schema["not"]
        return
    if not isinstance(negated, dict):
        return
    keys = set(negated)
    listed, unwanted = _values(schema), _values(negated)
    if keys == {"required"} and len(negated["required"]) == 1 and _kinds(schema) == {"object"}:
        del schema["not"]
        _all_of(schema, _without(negated["required"]))
    elif keys == {"anyOf"} and all(
        isinstance(option, dict) and set(option) == {"required"} and len(option["required"]) == 1
        for option in negated["anyOf"]
    ):
        if _kinds(schema) == {"object"}:
            del schema["not"]
            _all_of(schema, _without([option["required"][0] for option in negated["anyOf"]]))
    elif keys == {"type"} and "type" not in schema:
        types = _as_list(negated["type"])
        if "integer" not in types:
            del schema["not"]
            schema["type"] = [kind for kind in _TYPES if kind not in types]
    elif listed is not None and unwanted is not None and keys <= {"enum", "const"}:
        del schema["not"]
        schema.pop("const", None)
        schema["enum"] = [value for value in listed if not _in(value, unwanted)]
    elif unwanted == [True] or unwanted == [False]:
        if _kinds(schema) == {"boolean"}:
            del schema["not"]
            schema["const"] = not unwanted[0]
    elif unwanted == [None] and "type" not in schema:
        del schema["not"]
        schema["type"] = [kind for kind in _TYPES if kind != "null"]


def _choose_one(schema: Schema) -> None:
    """``oneOf`` of lists of required properties, one each: the others are missing."""
    options = schema.get("oneOf")
    if not isinstance(options, list) or _kinds(schema) != {"object"}:
        return
    if len(options) == 1:
        del schema["oneOf"]
        _all_of(schema, options[0])
        return
    names = []
    for option in options:
        if not isinstance(option, dict) or set(option) != {"required"}:
            return
        if len(option["required"]) != 1:
            return
        names.append(option["required"][0])
    if len(set(names)) != len(names):
        return
    del schema["oneOf"]
    branches = [
        {"required": [name], **_without([other for other in names if other != name])}
        for name in names
    ]
    _all_of(schema, {"anyOf": branches})


_REWRITES: tuple[Callable[[Schema], None], ...] = (
    _drop_formats,
    _split_dependencies,
    _drop_of_other_types,
    _drop_trivial,
    _name_pattern,
    _depend,
    _decide,
    _negate,
    _choose_one,
)


def _kinds(schema: Schema) -> set[str] | None:
    """Return the types a schema names, ``integer`` as ``number``; None when it names none."""
    kinds = schema.get("type")
    if kinds is None:
        values = _values(schema)
        if values is None:
            return None
        return {_kind(value) for value in values}
    return {"number" if kind == "integer" else str(kind) for kind in _as_list(kinds)}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int | float):
        return "number"
    return "array" if isinstance(value, list) else "object"


def _values(schema: Any) -> list[Any] | None:
    """Return the values that a schema lists."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    if isinstance(values, list):
        return values
    return [False, True] if schema.get("type") == "boolean" else None


def _in(value: Any, values: list[Any]) -> bool:
    key = _key(value)
    return any(_key(other) == key for other in values)


def _key(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


def _max_items(schema: Schema) -> float:
    value = schema.get("maxItems")
    return value if isinstance(value, int | float) and not isinstance(value, bool) else float("inf")


def _has_applicators(schema: Schema) -> bool:
    return any(
        key in schema
        for key in (
            "allOf",
            "anyOf",
            "oneOf",
            "not",
            "if",
            "$ref",
            "$dynamicRef",
            "dependentSchemas",
        )
    )


def _without(names: list[str]) -> Schema:
    return {"properties": dict.fromkeys(names, False)}


def _both(one: Schema, other: Any) -> Any:
    if other in (True, {}):
        return one
    return {"allOf": [one, other]}


def _all_of(schema: Schema, other: Any) -> None:
    if other not in (True, {}):
        schema["allOf"] = [*schema.get("allOf", []), other]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
