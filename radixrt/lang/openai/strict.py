"""Which schemas OpenAI's strict mode takes, so that they are enforced and not only hoped for."""

from __future__ import annotations

from typing import Any

_KEYWORDS = frozenset(
    {
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const"),
        *("anyOf", "$ref", "$defs", "title", "description", "pattern", "format", "minItems"),
        *("maxItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }
)
_FORMATS = frozenset(
    {
        *("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"),
    }
)


def is_strict(schema: Any) -> bool:
    """Whether a schema keeps to what strict mode knows: closed objects whose properties are all
    required, and no keyword beyond its own."""
    if not isinstance(schema, dict) or not schema or schema.keys() - _KEYWORDS:
        return False
    if schema.get("format", "date") not in _FORMATS:
        return False
    properties = schema.get("properties", {})
    if "properties" in schema or schema.get("type") == "object":
        is_closed = schema.get("additionalProperties") is False
        if not is_closed or set(schema.get("required", ())) != set(properties):
            return False
    inner = [*properties.values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", ())]
    if "items" in schema:
        inner.append(schema["items"])
    return all(is_strict(item) for item in inner)
