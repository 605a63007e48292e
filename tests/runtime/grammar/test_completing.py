"""Ends of JSON texts that are told from the schema, and patterns that are spelled out."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from grammar_walks import session_of, walk

from radixrt.runtime.grammar.closing import shortest_close, still_closes
from radixrt.runtime.grammar.compile import compile_grammar
from radixrt.runtime.grammar.completing import Completer
from radixrt.runtime.grammar.llguidance import LlguidanceEngine, regex_grammar
from radixrt.runtime.grammar.normalise import normalise
from radixrt.runtime.grammar.partial_json import outline, to_end_of_string
from radixrt.runtime.grammar.pattern_texts import PatternTexts
from radixrt.runtime.wire import GrammarSpec

EVENT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "note": {"type": "string"},
        "kind": {"enum": ["a", "b"]},
        "places": {
            "type": "array",
            "items": {"$ref": "#/$defs/place"},
            "minItems": 1,
        },
        "contact": {"type": "string", "format": "email"},
        "version": {"type": "string", "pattern": "^[a-z]+:[a-z]+:\\d+$"},
    },
    "required": ["kind", "places", "contact", "version"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {
                "at": {"type": "array", "items": {"type": "number"}, "minItems": 2},
                "open": {"type": "boolean"},
                "name": {"type": "string", "minLength": 3},
            },
            "required": ["at", "open", "name"],
            "additionalProperties": False,
        }
    },
}

VALUE = (
    '{"note":"so \\u00e9\\n","kind":"b","places":[{"at":[1,-2.5],"open":true,"name":"pier"},'
    '{"at":[0,3],"open":false,"name":"\u00e9t\u00e9"}],"contact":"m@lis.pt","version":"ab:c:10"}'
)


def completer_for(engine: LlguidanceEngine, schema: Any) -> Completer:
    return Completer(schema, PatternTexts({}, engine))


def test_from_every_byte_of_a_text_an_end_is_found_that_the_schema_allows(
    engine: LlguidanceEngine,
) -> None:
    compiled, matcher = compile_grammar(engine, GrammarSpec("json_schema", json.dumps(EVENT)))
    data = VALUE.encode()
    for at in range(len(data)):
        text = data[:at]
        here = matcher.fork()
        if not here.try_advance(_bytes_of(engine, text)):
            continue  # a number that is written on: the tokens of single bytes are not all there
        way = shortest_close(
            here, engine.vocabulary, 400, completer=compiled.completer, text=text, seconds=5.0
        )
        assert way is not None, text
        value = json.loads(text + engine.vocabulary.decode(way))
        jsonschema.validate(value, EVENT)


def _bytes_of(engine: LlguidanceEngine, text: bytes) -> list[int]:
    texts = engine.vocabulary.texts
    singles = {texts[i]: i for i in engine.vocabulary.single_bytes.tolist()}
    return [singles[bytes([byte])] for byte in text]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer", "minimum": 3, "multipleOf": 4}, 4),
        ({"type": "number", "exclusiveMaximum": -1}, -1.01),
        ({"enum": ["long one", "b"]}, "b"),
        ({"anyOf": [{"type": "array", "minItems": 3}, {"const": "x"}]}, "x"),
        ({"type": "array", "contains": {"const": 7}}, [7]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "uniqueItems": True}, None),
        ({"type": "object", "required": ["b", "a"], "properties": {"a": {}, "b": {}}}, None),
        ({"allOf": [{"required": ["a"]}, {"type": "object", "minProperties": 2}]}, None),
    ],
)
def test_small_values_are_valid(engine: LlguidanceEngine, schema: Any, value: Any) -> None:
    [first, *_] = completer_for(engine, schema).proposals(b"")
    assert first.is_whole
    found = json.loads(first.text)
    jsonschema.validate(found, schema)
    assert value is None or found == value


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": 5, "enum": 3, "required": "x", "properties": [1]},
        {"items": {"$ref": "#/nowhere"}, "minItems": 3, "type": "array"},
        {
            "$ref": "#/$defs/d0",
            "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)},
        },
    ],
)
def test_a_schema_that_tells_no_end_is_none(engine: LlguidanceEngine, schema: Any) -> None:
    """Whatever a stranger's schema is, asking it ends and raises nothing."""
    completer = completer_for(engine, schema)
    for text in (b"", b"{", b'{"a":', b'{"a":{"a":', b"[", b'["x', b"[1,"):
        assert len([*completer.proposals(text)]) <= 8
    assert completer.most_left() >= 0


@pytest.mark.parametrize("max_extra", [0, 3, 40])
def test_a_walk_is_valid_within_any_budget_that_the_shortest_text_fits_in(
    engine: LlguidanceEngine, max_extra: int
) -> None:
    spec = GrammarSpec("json_schema", json.dumps(EVENT), "valid")
    needed = session_of(engine, spec).compiled.shortest
    assert needed is not None
    for seed in range(6):
        session = session_of(engine, spec, max_tokens=len(needed) + max_extra)
        tokens = walk(session, np.random.default_rng(seed))
        assert len(tokens) <= len(needed) + max_extra
        jsonschema.validate(json.loads(session.written.bound_text), EVENT)


@pytest.mark.parametrize(
    ("text", "levels", "tail"),
    [
        (b"", 0, "value"),
        (b"{", 1, "first key"),
        (b'{"a', 1, "in key"),
        (b'{"a"', 1, "colon"),
        (b'{"a": ', 1, "value"),
        (b'{"a":"x\\"', 1, "string"),
        (b'{"a":[1,2', 2, "scalar"),
        (b'{"a":[1,{}', 2, "after"),
        (b'{"a":[1],', 1, "key"),
    ],
)
def test_the_outline_of_a_text_tells_what_is_open(text: bytes, levels: int, tail: str) -> None:
    found = outline(text)
    assert found is not None
    assert (len(found.levels), found.tail) == (levels, tail)


@pytest.mark.parametrize("text", ['"a\\n\\u00e9"', '"\u00e9\u20ac\U0001f600"', '"\\\\"', '"\\"x"'])
def test_a_string_that_is_cut_anywhere_can_be_ended(text: str) -> None:
    data = text.encode()
    for at in range(1, len(data)):
        begun = data[1:at]
        json.loads(b'"' + begun + to_end_of_string(begun) + b'"')


@pytest.mark.parametrize(
    "pattern",
    ["[a-z-]+:[a-z.-]+:[a-z-]+:\\d+", "<[a-z]+>[^<]*</[a-z]+>", "(foo|bar)+!", "\\d{3}-x"],
)
def test_a_pattern_is_spelled_out_from_anywhere_in_it(
    engine: LlguidanceEngine, pattern: str
) -> None:
    matcher = engine.build(regex_grammar(pattern))
    rng = np.random.default_rng(0)
    for _ in range(6):
        way = shortest_close(matcher, engine.vocabulary, 100, is_json=False, seconds=5.0)
        assert way is not None
        assert still_closes(matcher, way)
        if not way:
            return
        assert matcher.try_advance(way[: int(rng.integers(0, len(way)))])


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        (
            {
                "oneOf": [{"enum": [[2], [6, 8]]}, {"enum": [[2], []]}],
                "type": "array",
                "minItems": 1,
            },
            [[6, 8]],
            [[2], []],
        ),
        (
            {"oneOf": [{"required": ["a"]}, {"properties": {"b": {"type": "null"}}}]},
            [{}],
            ["text", 3, None],
        ),
        ({"anyOf": [{"const": 1}, {"const": "1"}], "not": {"type": "string"}}, [1], ["1"]),
    ],
)
def test_what_one_of_leaves_is_enforced(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    new = normalise(schema)
    validator, before = (
        jsonschema.Draft202012Validator(new),
        jsonschema.Draft202012Validator(schema),
    )
    assert new != schema
    for value in [*valid, *invalid]:
        assert validator.is_valid(value) == before.is_valid(value) == (value in valid)
    kinds = new.get("type")
    assert "enum" in new or kinds == "object"
