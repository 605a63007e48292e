"""Schemas in tiers: what is enforced, what is checked, and that nothing invalid passes both."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from grammar_walks import accepts, session_of, walk

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.json_schema import compile_schema
from radixrt.runtime.grammar.json_text import locate, matches, pointer
from radixrt.runtime.grammar.llguidance import LlguidanceEngine
from radixrt.runtime.grammar.normalise import normalise
from radixrt.runtime.grammar.validate import FinalValidator
from radixrt.runtime.wire import GrammarSpec

OBJECT: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}, "c": {"type": "null"}},
    "additionalProperties": False,
}
REWRITTEN: list[dict[str, Any]] = [
    {**OBJECT, "dependencies": {"a": ["b"]}},
    {**OBJECT, "dependentRequired": {"a": ["b", "c"]}, "required": ["a"]},
    {**OBJECT, "dependentSchemas": {"b": {"properties": {"a": {"const": 1}}}}},
    {
        **OBJECT,
        "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
        "then": {"required": ["b"]},
        "else": {"required": ["c"]},
    },
    {**OBJECT, "if": {"properties": {"a": {"const": 2}}}, "then": {"required": ["c"]}},
    {**OBJECT, "not": {"required": ["b"]}},
    {**OBJECT, "not": {"anyOf": [{"required": ["b"]}, {"required": ["c"]}]}},
    {**OBJECT, "oneOf": [{"required": ["a"]}, {"required": ["b"]}, {"required": ["c"]}]},
    {"enum": [1, 2, "x", None], "not": {"enum": [2, None]}},
    {"not": {"type": ["object", "array", "string"]}},
    {"type": "boolean", "not": {"const": True}},
    {"type": "array", "maxItems": 1, "uniqueItems": True},
    {"type": "string", "uniqueItems": True, "propertyNames": {"pattern": "x"}},
    {"type": "object", "propertyNames": {"pattern": "^[ab]$"}},
    {"type": "object", "propertyNames": {"enum": ["a", "c"]}, "additionalProperties": {}},
    {"type": "array", "contains": {}, "items": {"type": "null"}},
    {"type": "string", "format": "of-my-own"},
]

VALUES = [
    *(None, True, False, 1, 2, "x", "", [], [None], [1, 2], [True]),
    *(
        dict(zip(keys, values, strict=True))
        for length in range(4)
        for keys in itertools.combinations("abc", length)
        for values in itertools.product(
            *({"a": (1, 2), "b": (True,), "c": (None,)}[k] for k in keys)
        )
    ),
]


@pytest.mark.parametrize("schema", REWRITTEN, ids=lambda schema: json.dumps(schema)[-50:])
def test_a_rewriting_is_exact_and_leaves_nothing_to_check(
    engine: LlguidanceEngine, schema: dict[str, Any]
) -> None:
    before = json.dumps(schema)
    compiled = compile_schema(engine, before, strict="format" not in schema)
    assert json.dumps(schema) == before
    validator = jsonschema.Draft202012Validator(
        schema if "dependencies" not in schema else {**schema, "$schema": ""}
    )
    if "dependencies" in schema:
        validator = jsonschema.Draft7Validator(schema)
    after = type(validator)(normalise(schema))
    for value in VALUES:
        expected = validator.is_valid(value)
        assert after.is_valid(value) == expected, value
        text = json.dumps(value, separators=(",", ":"))
        assert accepts(compiled.matcher, engine, text) == expected, value


CHECKED = {
    "type": "object",
    "properties": {
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True},
        "n": {"type": "integer", "not": {"multipleOf": 2}, "minimum": 0, "maximum": 9},
    },
    "required": ["tags", "n"],
    "additionalProperties": False,
}


def test_the_report_names_every_keyword_with_its_pointer(engine: LlguidanceEngine) -> None:
    schema = {**CHECKED, "format": "odd", "title": "no constraint"}
    compiled = compile_schema(engine, json.dumps(schema))
    found = {(k.pointer, k.keyword): k.status for k in compiled.keywords}
    assert found["/properties/tags", "uniqueItems"] == "checked"
    assert found["/properties/n", "not"] == "checked"
    assert found["/properties/n", "minimum"] == "enforced"
    assert found["", "format"] == "ignored"
    assert ("", "title") not in found
    assert not compiled.is_enforced
    assert compiled.warnings
    with pytest.raises(GrammarError, match="uniqueItems at /properties/tags"):
        compile_schema(engine, json.dumps(schema), strict=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("7", "a schema is an object"),
        ("false", "no value"),
        ('{"type": 7}', "type"),
        ('{"$ref": "#/nowhere"}', "nowhere"),
        ("[" * 100_000, "not JSON"),
        ('{"items":' * 150 + "{}" + "}" * 150, "nested"),
    ],
)
def test_what_is_no_schema_is_refused(engine: LlguidanceEngine, text: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        compile_schema(engine, text)


def test_a_look_around_is_left_to_the_final_validation(engine: LlguidanceEngine) -> None:
    schema = {"type": "string", "pattern": "^(?!no).*$"}
    compiled = compile_schema(engine, json.dumps(schema))
    assert ("", "pattern", "checked") in compiled.keywords
    assert FinalValidator(schema).check('"no"') is not None
    assert FinalValidator(schema).check('"yes"') is None


def test_the_final_validation_finds_the_first_value_that_is_wrong() -> None:
    text = '{"n":4,"tags":["a","b","a"]}'
    failure = FinalValidator(CHECKED).check(text)
    assert failure is not None
    assert (failure.path, text[failure.start : failure.end]) == (("n",), "4")
    failure = FinalValidator(CHECKED).check(text.replace("4", "5"))
    assert failure is not None
    assert failure.path == ("tags",)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a|a|aa)+$"},
        {
            "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 4} for i in range(30)}
            | {"d30": {}},
            "$ref": "#/$defs/d0",
        },
        {"$ref": "https://example.invalid/schema.json"},
        {"$ref": "#"},
    ],
)
def test_a_validation_without_end_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(GrammarError):
        FinalValidator(schema).check('"' + "a" * 40 + '!"')


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("any_order", [False, True])
def test_layouts_are_those_of_python_s_json(
    engine: LlguidanceEngine, indent: int | None, any_order: bool
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "sub": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 3},
            "note": {"type": "string"},
        },
        "required": ["id", "note"],
        "additionalProperties": False,
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"x": {"type": "null"}, "sub": {"$ref": "#/$defs/node"}},
                "additionalProperties": False,
            }
        },
    }
    compiled = compile_schema(engine, json.dumps(schema), indent=indent, any_order=any_order)

    def takes(value: Any) -> bool:
        separators = (",", ":") if indent is None else None
        text = json.dumps(value, indent=indent, separators=separators)
        return accepts(compiled.matcher, engine, text)

    assert takes({"id": 1, "note": "n"})
    assert takes({"id": 1, "sub": [], "note": "n"})
    assert takes({"id": 1, "sub": [{"x": None, "sub": {}}, {}], "note": ""})
    assert takes({"note": "n", "id": 1}) == any_order
    assert takes({"id": 1, "sub": [{"sub": {}, "x": None}], "note": ""}) == any_order
    assert not takes({"id": 1})
    assert not takes({"id": 1, "note": "n", "more": 1})
    assert not takes({"id": 1, "note": "n", "sub": [{}] * 4})
    assert not accepts(compiled.matcher, engine, '{ "id":1,"note":"n"}')
    assert not accepts(compiled.matcher, engine, '{"id":1,"note":"n","id":1}')


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"type": "string", "maxLength": 5000}, {"type": "string", "format": "date"}]},
        {"$defs": {"long": {"type": "string", "maxLength": 5000}}, "$ref": "#/$defs/long"},
    ],
)
def test_a_long_limit_that_has_no_one_place_is_checked_in_the_end(
    engine: LlguidanceEngine, schema: dict[str, Any]
) -> None:
    compiled = compile_schema(engine, json.dumps(schema))
    assert not compiled.is_enforced
    assert [k.status for k in compiled.keywords if k.keyword == "maxLength"] == ["checked"]
    with pytest.raises(GrammarError, match="maxLength"):
        compile_schema(engine, json.dumps(schema), strict=True)


def test_long_limits_are_counted_and_still_hold(engine: LlguidanceEngine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "s": {"type": "string", "maxLength": 1030},
            "a": {"type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 260},
        },
        "required": ["s", "a"],
        "additionalProperties": False,
    }
    spec = GrammarSpec("json_schema", json.dumps(schema), "valid", jump_forward=False)
    session = session_of(engine, spec, max_tokens=5000)
    assert [limit.limit for limit in session.compiled.limits] == [1030, 260]
    assert session.compiled.is_enforced
    (letter,) = engine.vocabulary.encode(b"a")
    one, comma = (engine.vocabulary.encode(text)[0] for text in (b"1", b","))
    tokens = [*engine.vocabulary.encode(b'{"s":"'), *[letter] * 1030]
    tokens += [*engine.vocabulary.encode(b'","a":[1'), *[comma, one] * 259]
    session.start()
    for token in tokens:
        bitmask = np.zeros(engine.mask_len, np.int32)
        session.matcher.fill(bitmask)
        session.restrict(bitmask)
        accepted = session.accept(token, 0.0, 0.0)
        assert not accepted.replaced
    walk_on = walk_to_end(session, np.random.default_rng(0))
    value = json.loads(walk_on)
    assert (len(value["s"]), len(value["a"])) == (1030, 260)


def walk_to_end(session: Any, rng: np.random.Generator) -> str:
    from radixrt.runtime.grammar.vocabulary import allowed_ids

    is_over = False
    while not is_over:
        bitmask = np.zeros(-(-len(session.vocabulary) // 32), np.int32)
        session.matcher.fill(bitmask)
        session.restrict(bitmask)
        ids = allowed_ids(bitmask, len(session.vocabulary))
        is_over = session.accept(int(ids[rng.integers(len(ids))]), 0.0, 0.0).is_over
    return str(session.written.bound_text)


@pytest.mark.parametrize("seed", range(6))
def test_random_walks_are_valid_whatever_the_budget(engine: LlguidanceEngine, seed: int) -> None:
    rng = np.random.default_rng(seed)
    schemas = [
        *(schema for schema in REWRITTEN if "format" not in schema),
        {"type": "array", "items": {"type": "number"}, "minItems": 2},
        {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
        {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.com$"},
        {"type": "string", "minLength": 20, "maxLength": 30},
        {"type": "string", "format": "date-time"},
    ]
    for schema in schemas:
        spec = GrammarSpec("json_schema", json.dumps(schema), "valid")
        session = session_of(engine, spec)
        needed = len(session.compiled.shortest or ())
        session = session_of(engine, spec, max_tokens=needed + int(rng.integers(0, 40)))
        tokens = walk(session, rng)
        assert len(tokens) <= session.budget.max_tokens
        text = session.written.bound_text
        assert FinalValidator(schema).check(text) is None, text


def test_values_are_located_in_their_text() -> None:
    text = '{"a\\"b": [1, {"c": "x\\\\"}], "": null}'
    located = locate(text)
    for path, (start, end) in located.spans.items():
        value: Any = located.value
        for key in path:
            value = value[key]
        assert json.loads(text[start:end]) == value
    assert located.scalars == [('a"b', 0), ('a"b', 1, "c"), ("",)]
    assert pointer(("a/b", 0, "~")) == "/a~1b/0/~0"
    assert matches("/a~1b/*/~0", ("a/b", 0, "~"))
    assert not matches("/a", ("a", 0))
