"""Limits that are counted: masks are those of an automaton with the limit in it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from grammar_walks import session_of, walk

from radixrt.runtime.grammar.compile import compile_grammar
from radixrt.runtime.grammar.json_path import JsonPath
from radixrt.runtime.grammar.json_schema import compile_schema
from radixrt.runtime.grammar.limits import UNLIMITED, CountLimit, take_long_limits
from radixrt.runtime.grammar.llguidance import LlguidanceEngine, LlguidanceMatcher, json_grammar
from radixrt.runtime.grammar.string_tokens import (
    ENDED,
    IN_CHARACTER,
    NUM_STATES,
    StringTokens,
    ends_in_character,
)
from radixrt.runtime.grammar.vocabulary import allowed_ids
from radixrt.runtime.wire import GrammarSpec


def strings(*limits: int, least: int = 0) -> dict[str, Any]:
    """Return an object of strings with these limits, and a list of each."""
    texts = {
        f"s{at}": {"type": "string", "maxLength": limit, "minLength": min(least, limit)}
        for at, limit in enumerate(limits)
    }
    texts["free"] = {"type": "string", "minLength": least}
    lists = {f"l{at}": {"type": "array", "items": text} for at, text in enumerate(texts.values())}
    return {
        "type": "object",
        "properties": {"o": texts["free"], **texts, **lists, "n": {"type": ["integer", "null"]}},
        "required": [*texts, *lists, "n"],
        "additionalProperties": False,
    }


OPTIONAL = {
    "type": "object",
    "properties": {"a": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "schema", [strings(0, 1, 2, 3), strings(5, 12, 40), strings(3, 9, 17, least=2), OPTIONAL]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_counted_limit_allows_what_an_automaton_of_it_allows(
    engine: LlguidanceEngine, schema: dict[str, Any], seed: int
) -> None:
    compiled, template = compile_grammar(engine, GrammarSpec("json_schema", json.dumps(schema)))
    assert compiled.limits
    automaton = engine.build(json_grammar(json.dumps(schema), lenient=False))
    rng = np.random.default_rng(seed)
    num_known = 0
    for _ in range(6):  # what a text has learned serves the others
        num_known += walk_side_by_side(engine, template.fork(), automaton.fork(), rng)
    assert num_known > 0


def walk_side_by_side(
    engine: LlguidanceEngine,
    counting: LlguidanceMatcher,
    automaton: LlguidanceMatcher,
    rng: np.random.Generator,
) -> int:
    """Take random tokens as long as masks are equal; returns how many of them were known before."""
    ours, theirs = (np.zeros(engine.mask_len, np.int32) for _ in "ab")
    texts = engine.vocabulary.texts
    num_known = 0
    for step in range(120):
        num_known += counting.known_mask is not None
        counting.fill(ours)
        automaton.fill(theirs)
        if automaton.forced():  # its mask has no other spelling of what is forced, valid as it is
            assert not (theirs & ~ours).any()
        else:
            assert np.array_equal(ours, theirs)
        assert counting.is_accepting == automaton.is_accepting
        if counting.is_finished:
            break
        ids = allowed_ids(theirs, len(engine.vocabulary))
        # Ends, escapes and several bytes a character more often than a uniform choice has them.
        rare = [i for i in ids.tolist() if texts[i][:1] in b'"\\' or texts[i][:1] >= b"\x80"]
        pool = rare if rare and rng.random() < 0.4 else ids
        token = int(pool[rng.integers(len(pool))])
        if step % 3 == 0:
            counting.advance(token)
            counting.rollback(1)
        if step % 5 == 0:
            counting = counting.fork()
        forced = counting.forced()
        if forced:
            assert counting.try_advance(forced) == automaton.try_advance(forced)
        else:
            counting.advance(token)
            automaton.advance(token)
    return num_known


def test_a_text_that_passes_a_counted_limit_is_not_taken(engine: LlguidanceEngine) -> None:
    _, matcher = compile_grammar(engine, GrammarSpec("json_schema", json.dumps(strings(3))))
    encode = engine.vocabulary.encode
    assert not matcher.try_advance(encode(b'{"s0":"abcd","free":"'))
    assert not matcher.try_advance(encode(b'{"s0":"abc","free":"abcd","l0":["a","abcd'))
    assert matcher.try_advance(encode(b'{"s0":"abc","free":"abcd","l0":["a","ab'))
    matcher.rollback(1)
    restarted = matcher.restarted()
    assert restarted.try_advance(encode(b'{"s0":"abc","free":"","l0":[],"l1":[],"n":null}'))
    assert restarted.is_accepting


@pytest.mark.parametrize("extra", [0, 1, 4, 20, 80])
def test_texts_with_counted_limits_are_closed_in_time(engine: LlguidanceEngine, extra: int) -> None:
    schema = strings(3, 12, least=2)
    spec = GrammarSpec("json_schema", json.dumps(schema), "valid")
    compiled, _ = compile_grammar(engine, spec)
    assert compiled.shortest is not None
    assert compiled.is_enforced
    session = session_of(engine, spec, max_tokens=len(compiled.shortest) + extra)
    walk(session, np.random.default_rng(extra))
    assert session.compiled.validator is not None
    assert session.compiled.validator.check(session.written.bound_text) is None


def test_a_counted_limit_begins_after_the_prompt_s_end_that_is_healed(
    engine: LlguidanceEngine,
) -> None:
    spec = GrammarSpec("json_schema", json.dumps(strings(2)), "valid", heal='a "long')
    session = session_of(engine, spec)
    walk(session, np.random.default_rng(0))
    assert all(len(v) <= 2 for v in [json.loads(session.written.bound_text)["s0"]])


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "string", "maxLength": 5, "pattern": "x"}}},
        {"properties": {"a": {"maxLength": 5}}},
        {"properties": {"a": {"type": "string", "maxLength": 5, "minLength": 6}}},
        {"properties": {"*": {"type": "string", "maxLength": 5}}},
        {
            "properties": {"a": {"$ref": "#/$defs/s"}},
            "$defs": {"s": {"type": "string", "maxLength": 5}},
        },
        {"properties": {"a": {"type": "string", "maxLength": 5}, "b": {"$ref": "#/properties/a"}}},
        {"properties": {"a": {"type": "string", "maxLength": 5}}, "patternProperties": {"^a": {}}},
        {"properties": {"a": {"type": "string", "maxLength": 5}}, "anyOf": [{"required": ["a"]}]},
        {"additionalProperties": {"type": "string", "maxLength": 5}},
        {"allOf": [{"properties": {"a": {"type": "string", "maxLength": 5}}}]},
        {"prefixItems": [{"type": "string", "maxLength": 5}]},
        {"anyOf": [{"type": "string", "maxLength": 5}, {"enum": ["elephant"]}]},
        {"anyOf": [{"type": "string", "maxLength": 5}, {}], "maxLength": 9},
    ],
    ids=lambda schema: json.dumps(schema)[:60],
)
def test_a_limit_that_concerns_more_than_one_place_stays_with_the_automaton(
    schema: dict[str, Any],
) -> None:
    assert take_long_limits(schema) == (schema, ([], set()))


def test_limits_of_plain_strings_are_counted_wherever_they_are() -> None:
    text = {"type": "string", "maxLength": 5}
    schema = {
        "properties": {
            "a/b": text,
            "c": {"type": "array", "items": {"properties": {"d": {**text, "title": "D"}}}},
            "e": {"oneOf": [{"type": "null"}, text]},
            "f": {"type": "string", "minLength": 3},
        },
        "required": ["a/b"],
    }
    _, limits = take_long_limits(schema)
    assert [limit.pointer for limit in limits.counted] == ["/a~1b", "/c/*/d", "/e", "/f"]
    assert limits.counted[-1] == CountLimit("/f", "maxLength", UNLIMITED, 3)
    assert take_long_limits(text)[1].counted == [CountLimit("", "maxLength", 5, 0)]


def test_a_counted_limit_is_reported_as_enforced(engine: LlguidanceEngine) -> None:
    compiled = compile_schema(engine, json.dumps(strings(5)), strict=True)
    assert {k.status for k in compiled.keywords if k.keyword == "maxLength"} == {"enforced"}


@pytest.mark.parametrize("state", range(NUM_STATES))
def test_what_tokens_add_to_a_string_is_what_a_reader_finds(
    engine: LlguidanceEngine, state: int
) -> None:
    begun = (b'"a', b'"\\', b'"\\u00', b'"\\u0', b'"\\u', '"é'.encode()[:-1])[state]
    rest = (b"", b"n", b"1f", b"01f", b"001f", b"\xa9")[state]
    texts = [text for text in engine.vocabulary.texts if text][:2000]
    texts += [rest + text for text in (b"", b'b"', "é漢".encode(), b'\\"\\\\x"y', b"\\u00e9z\\n")]
    texts += [rest + "漢".encode()[:cut] for cut in (1, 2)]
    found = StringTokens(texts).effect(state)
    for at, text in enumerate(texts):
        if not text.startswith(rest) or (state == 0 and b"\x80" <= text[:1] < b"\xc0"):
            continue  # no text of JSON
        reader = JsonPath()
        reader.feed(begun)
        before, ends = reader.length, False
        for byte in text:
            reader.feed(bytes((byte,)))
            if not reader.in_string:
                ends = True
                break
        assert found.units[at] == reader.length - before
        if ends:
            assert found.after[at] == ENDED
        elif ends_in_character(begun + text) or text == b"\xa9":
            assert found.after[at] == IN_CHARACTER
        else:
            assert found.after[at] == reader.escape


@pytest.mark.parametrize("text", ["aé", "漢", "😀"])
def test_a_text_ends_in_a_character_unless_all_of_it_is_there(text: str) -> None:
    data = b"x" + text.encode()
    whole = [len(("x" + text[:n]).encode()) for n in range(len(text) + 1)]
    for cut in range(1, len(data) + 1):
        assert ends_in_character(data[:cut]) == (cut not in whole)


def test_the_tokens_within_a_limit_are_those_that_add_no_more() -> None:
    tokens = StringTokens(
        [b"", b"a", b'ab"cdef', b"\\n\\n\\n", "漢字".encode(), b"\xe6", b"\xad"] * 9
    )
    for left in range(4):
        mask = tokens.within(0, left)
        assert mask is not None
        expected = np.flatnonzero(np.asarray(tokens.effect(0).units) <= left)
        assert np.array_equal(allowed_ids(mask, 63), expected)
    assert tokens.within(0, 100) is None


def test_a_reader_finds_back_from_any_depth() -> None:
    reader = JsonPath()
    reader.feed(b'{"a":' + b'[{"x":' * 300 + b'"],"' + b"}]" * 300 + b',"b":["c","de')
    assert (reader.path, reader.length) == (("b", 1), 2)


def test_a_way_that_is_no_text_of_the_grammar_is_refused(engine: LlguidanceEngine) -> None:
    _, matcher = compile_grammar(engine, GrammarSpec("json_schema", json.dumps(strings(3))))
    broken = [i for i, text in enumerate(engine.vocabulary.texts) if text == b"\xc3"]
    assert broken
    assert not matcher.try_advance([*engine.vocabulary.encode(b'{"s'), *broken, *broken])
    assert matcher.try_advance(engine.vocabulary.encode(b'{"s0":"'))
