"""Types of pydantic: models, their fields' constraints, aliases, validators. The only file that
imports it, and only when such a type is handed in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from radixrt.errors import InvalidArgument
from radixrt.lang.fields import Field
from radixrt.lang.form import Form, Unreadable
from radixrt.lang.scalars import INTEGER, NAIVE_DATETIME, PATTERNS

if TYPE_CHECKING:
    from radixrt.lang.forms import FormBuilder

_EXACT = frozenset(
    (
        *("any", "none", "bool", "int", "float", "str", "literal", "enum", "nullable"),
        *("date", "time", "datetime", "timedelta", "uuid", "list", "tuple", "dict", "union"),
        *("tagged-union", "model", "model-fields", "model-field", "typed-dict"),
        *("typed-dict-field", "dataclass", "dataclass-args", "dataclass-field", "default"),
        *("definitions", "definition-ref", "lax-or-strict"),
    )
)
"""Kinds of pydantic's core schemas that take whatever fits their JSON schema."""

_INEXACT_KEYS = frozenset(("post_init", "cls_post_init", "now_op", "strip_whitespace"))

_TIMES = frozenset(("date", "time", "datetime", "timedelta"))
_BOUNDS = frozenset(("gt", "ge", "lt", "le"))

_BELOW = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
_BELOW_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")
_BELOW_MAPS = ("properties", "patternProperties", "$defs")


def pydantic_form(tp: Any, builder: FormBuilder) -> tuple[Form, bool]:
    """Return the form of a type that pydantic knows, its definitions added to ``builder``, and
    whether everything that fits its schema can be read."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(tp)
        adapter.rebuild()
        names: dict[str, str] = {}
        schema = adapter.json_schema(mode="validation", schema_generator=_Schemas)
    except (PydanticUserError, PydanticUndefinedAnnotation, PydanticInvalidForJsonSchema) as error:
        reason = str(error).splitlines()[0]
        raise InvalidArgument("type", tp, f"pydantic has no JSON schema for it: {reason}") from None
    definitions = schema.pop("$defs", {})
    for name in definitions:
        names[name] = builder.new_name(name)
        builder.definitions[names[name]] = {}
    is_exact = _is_exact(adapter.core_schema)
    for name, definition in definitions.items():
        builder.definitions[names[name]] = _adapted(definition, names)
    adapted = _adapted(schema, names)
    is_exact &= not _has_format([adapted, *builder.definitions.values()])

    def read(value: Any) -> Any:
        try:
            return adapter.validate_json(json.dumps(value))
        except ValidationError as error:
            raise _unreadable(error) from error

    def read_text(text: str) -> Any:
        try:
            return adapter.validate_json(text)
        except ValidationError as error:
            raise _unreadable(error) from error

    return Form(adapted, read, read_text), is_exact


_AFTER_SCHEME = (
    r"[a-z0-9]+(?:[.-][a-z0-9]+)*(?::[1-9][0-9]{1,3})?(?:/[A-Za-z0-9._~-]+)*/?"
    r"(?:\?[A-Za-z0-9._~=&%-]*)?(?:#[A-Za-z0-9._~-]*)?"
)


class _Schemas(GenerateJsonSchema):
    """Pydantic's schemas, but closer to what it reads: decimals are numbers alone (as text they
    would be unbounded), keys that are numbers and URLs have patterns, naive times no zone."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> dict[str, Any]:
        whole = super().decimal_schema(schema)
        return next((k for k in whole.get("anyOf", ()) if k.get("type") == "number"), whole)

    def dict_schema(self, schema: core_schema.DictSchema) -> dict[str, Any]:
        whole = super().dict_schema(schema)
        if schema.get("keys_schema", {}).get("type") == "int":
            values = whole.pop("additionalProperties", True)
            whole |= {"patternProperties": {INTEGER: values}, "additionalProperties": False}
        return whole

    def url_schema(self, schema: core_schema.UrlSchema) -> dict[str, Any]:
        schemes = "|".join(map(re.escape, schema.get("allowed_schemes") or ("https", "http")))
        return {"type": "string", "pattern": f"^(?:{schemes})://{_AFTER_SCHEME}$"}

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> dict[str, Any]:
        if schema.get("tz_constraint") == "naive":
            return {"type": "string", "pattern": NAIVE_DATETIME}
        return super().datetime_schema(schema)


def model_fields(model: Any) -> tuple[Field, ...]:
    """Return a model's fields, with the keys they have in JSON."""
    return tuple(
        Field(
            next((a for a in (field.validation_alias, field.alias) if isinstance(a, str)), name),
            name,
            field.annotation,
            field.is_required(),
        )
        for name, field in model.model_fields.items()
    )


def _unreadable(error: ValidationError) -> Unreadable:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    refused = Unreadable(first["msg"])
    for part in reversed(first["loc"]):
        refused = refused.below(part)
    return refused


# ---------------------------------------------------------------- schemas


def _adapted(schema: Any, names: Mapping[str, str]) -> Any:
    """Return pydantic's schema in the form that is generated from: objects closed, exact patterns
    for formats, alternatives instead of ``oneOf`` where a discriminator tells them apart."""
    if not isinstance(schema, dict):
        return schema
    adapted = {
        key: value for key, value in schema.items() if key not in ("title", "default", "examples")
    }
    if "$ref" in adapted:
        adapted["$ref"] = "#/$defs/" + names[adapted["$ref"].rpartition("/")[2]]
    if adapted.pop("discriminator", None) is not None:
        adapted["anyOf"] = adapted.pop("oneOf")
    if (pattern := PATTERNS.get(adapted.get("format", ""))) is not None:
        del adapted["format"]
        adapted["pattern"] = pattern
    elif adapted.get("format") in ("binary", "password", "path", "file-path"):
        del adapted["format"]
    if adapted.get("type") == "object" and "properties" in adapted:
        adapted.setdefault("additionalProperties", False)
    elif adapted.get("type") == "object" and "additionalProperties" not in adapted:
        adapted.setdefault("properties", {})
    for key in _BELOW:
        if key in adapted:
            adapted[key] = _adapted(adapted[key], names)
    for key in _BELOW_LISTS:
        if key in adapted:
            adapted[key] = [_adapted(item, names) for item in adapted[key]]
    for key in _BELOW_MAPS:
        if key in adapted:
            adapted[key] = {name: _adapted(item, names) for name, item in adapted[key].items()}
    return adapted


def _has_format(schema: Any) -> bool:
    """Whether a format is left that an engine may take more loosely than pydantic does."""
    if isinstance(schema, list):
        return any(map(_has_format, schema))
    if not isinstance(schema, Mapping):
        return False
    if isinstance(schema.get("format"), str):
        return True
    return any(map(_has_format, schema.values()))


def _is_exact(core: Any) -> bool:
    """Whether a core schema has nothing that JSON Schema cannot say."""
    if isinstance(core, Mapping):
        kind = core.get("type")
        if isinstance(kind, str) and kind not in _EXACT:
            return False
        if any(core.get(key) for key in _INEXACT_KEYS):
            return False
        if kind in _TIMES and core.keys() & _BOUNDS:
            return False  # JSON Schema bounds numbers alone
        return all(
            _is_exact(value)
            for key, value in core.items()
            if key not in ("metadata", "serialization", "config", "default", "cls", "members")
        )
    if isinstance(core, list | tuple):
        return all(map(_is_exact, core))
    return True
