"""Descriptions of bodies for ``/openapi.json``, from the structures that decode them."""

from __future__ import annotations

from typing import Any

import msgspec

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

STATUSES = ("400", "401", "403", "404", "413", "429", "503", "504")


def described(body: type[msgspec.Struct] | None, summary: str) -> dict[str, Any]:
    """Return the arguments of a route that describe it: its body and its errors."""
    extra: dict[str, Any] = {}
    if body is not None:
        extra["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema_of(body)}},
        }
    errors = {"application/json": {"schema": ERROR_SCHEMA}}
    return {
        "summary": summary,
        "openapi_extra": extra,
        "responses": {
            status: {"description": "An error.", "content": errors} for status in STATUSES
        },
    }


def schema_of(body: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON schema of a structure, whole: its definitions stand in place of references to
    them. Null is allowed wherever a field may be left out."""
    (root,), definitions = msgspec.json.schema_components(
        [body], ref_template="#/components/schemas/{name}"
    )
    schema: dict[str, Any] = _inlined(root, definitions)
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        if name not in required and field:
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}
    schema["additionalProperties"] = True
    return schema


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions)
        return {name: _inlined(item, definitions) for name, item in value.items()}
    if isinstance(value, list):
        return [_inlined(item, definitions) for item in value]
    return value
