"""Generations under a constraint without a model: every token is drawn by the test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import regex
from grammar_walks import session_of, walk

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.closing import shortest_close
from radixrt.runtime.grammar.json_path import JsonPath
from radixrt.runtime.grammar.json_text import locate
from radixrt.runtime.grammar.llguidance import LlguidanceEngine, regex_grammar
from radixrt.runtime.grammar.session import GOES_ON, Accepted, Session
from radixrt.runtime.grammar.steering import Steering
from radixrt.runtime.grammar.tool_calls import FORMATS, find_calls, format_of_template
from radixrt.runtime.grammar.validate import Failure
from radixrt.runtime.grammar.vocabulary import allowed_ids
from radixrt.runtime.wire import FieldParams, GrammarSpec

TOOLS: dict[str, Any] = {
    "tools": [
        {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
        {"type": "function", "function": {"name": "now", "parameters": {"properties": {}}}},
    ],
}
TOOLS["tools"][1]["function"]["parameters"]["additionalProperties"] = False


def encode(engine: LlguidanceEngine, text: str) -> list[int]:
    return engine.vocabulary.encode(text.encode())


def mask_of(session: Session) -> list[int]:
    bitmask = np.zeros(-(-len(session.vocabulary) // 32), np.int32)
    session.matcher.fill(bitmask)
    session.restrict(bitmask)
    return allowed_ids(bitmask, len(session.vocabulary)).tolist()


def feed(session: Session, tokens: Sequence[int]) -> list[int]:
    """Let a session take tokens; those that were forced meanwhile are skipped."""
    session.start()
    for token in tokens:
        accepted = session.accept(token, 0.0, 0.0)
        if accepted.is_over:
            break
    return session.written.token_ids


# ------------------------------------------------------------ budgets and forced tokens


@pytest.mark.parametrize(
    "pattern", [r"\d{4}-\d{2}", r"[a-z]+@[a-z]+\.com", r"(foo|barbaz)+!", "a{30}b", "[^x]{9,20}x"]
)
def test_patterns_are_closed_in_time(engine: LlguidanceEngine, pattern: str) -> None:
    matcher = engine.build(regex_grammar(pattern))
    way = shortest_close(matcher, engine.vocabulary, 100, is_json=False)
    assert way is not None
    assert regex.fullmatch(pattern, engine.vocabulary.decode(way).decode())
    rng = np.random.default_rng(1)
    for extra in (0, 1, 5, 30):
        spec = GrammarSpec("regex", pattern, "valid")
        session = session_of(engine, spec, max_tokens=len(way) + extra)
        walk(session, rng)
        assert regex.fullmatch(pattern, session.written.bound_text)


def test_a_budget_that_is_too_small_is_refused_before_a_token(engine: LlguidanceEngine) -> None:
    session = session_of(engine, GrammarSpec("regex", "a{9}", "valid"), max_tokens=3)
    with pytest.raises(GrammarError, match=r"max_tokens=3.*takes \d+ tokens"):
        session.start()
    assert session.written.token_ids == []
    cut = session_of(engine, GrammarSpec("regex", "a{9}", "cut"), max_tokens=3)
    walk(cut, np.random.default_rng(0))
    assert len(cut.written.token_ids) == 3


def test_forced_tokens_are_spelled_as_the_tokenizer_does(engine: LlguidanceEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"the_first_answer": {"type": "integer"}, "explanation": {"const": "none"}},
        "required": ["the_first_answer", "explanation"],
        "additionalProperties": False,
    }
    session = session_of(engine, GrammarSpec("json_schema", json.dumps(schema), "valid"))
    walk(session, np.random.default_rng(0))
    run: list[int] = []
    for at, token in enumerate(session.written.token_ids):
        if at in session.written.forced_at:
            run.append(token)
        elif run:
            assert engine.vocabulary.encode(engine.vocabulary.decode(run)) == run
            run = []
    assert session.written.num_forced > len(session.written.token_ids) / 2


def test_min_tokens_puts_the_end_off_where_something_else_can_follow(
    engine: LlguidanceEngine,
) -> None:
    session = session_of(engine, GrammarSpec("regex", "a{1,9}b{2}c?"), min_tokens=5, max_tokens=40)
    end = engine.vocabulary.end_ids[0]
    feed(session, encode(engine, "a"))
    assert end not in mask_of(session)
    closed = session_of(engine, GrammarSpec("regex", "[ab]"), min_tokens=5)
    assert walk(closed, np.random.default_rng(0))  # nothing else can follow: it may end


def test_control_tokens_and_padding_are_never_allowed_inside(engine: LlguidanceEngine) -> None:
    session = session_of(engine, GrammarSpec("regex", r"(?s:.){1,20}"))
    feed(session, encode(engine, "a"))
    allowed = set(mask_of(session))
    ends = set(engine.vocabulary.end_ids)
    assert ends <= allowed
    assert not allowed & (engine.vocabulary.control_ids - ends)
    assert max(allowed) < 4096


# ------------------------------------------------------------ free text first


def test_reasoning_is_free_and_cannot_replace_the_answer(engine: LlguidanceEngine) -> None:
    spec = GrammarSpec("json_schema", '{"type":"boolean"}', "valid", after="</think>")
    end = engine.vocabulary.end_ids[0]
    # The prompt has opened the section; the model wants to end without an answer.
    session = session_of(engine, spec, prompt_tail=b"<think>\n", max_tokens=60)
    walk(session, np.random.default_rng(0), [*encode(engine, "So: true, false"), end])
    text = session.written.text.decode()
    assert text.startswith("So: true, false</think>")
    assert session.written.bound_text in ("true", "false")
    # It closes the section itself, with blanks in the same token.
    session = session_of(engine, spec, prompt_tail=b"<think>\n", max_tokens=60)
    walk(session, np.random.default_rng(0), encode(engine, "Hm.</think>"))
    assert session.written.text.decode() in ("Hm.</think>true", "Hm.</think>false")
    # Nothing is left for reasoning: the marker comes in time.
    session = session_of(engine, spec, prompt_tail=b"<think>\n", max_tokens=16)
    tokens = walk(session, np.random.default_rng(0), encode(engine, "a b c d e f g h i j k l m"))
    assert len(tokens) <= 16
    assert session.written.bound_text in ("true", "false")


def test_a_model_that_does_not_reason_answers_at_once(engine: LlguidanceEngine) -> None:
    spec = GrammarSpec("json_schema", '{"type":"boolean"}', "valid", after="</think>")
    session = session_of(engine, spec)
    session.start()
    opening = encode(engine, "<think>")[0]
    allowed = {engine.vocabulary.texts[token] for token in mask_of(session)}
    assert engine.vocabulary.texts[opening] in allowed
    assert b"t" in allowed
    assert b"z" not in allowed
    session.accept(opening, 0.0, 0.0)
    assert session.written.text.decode() == "<think>"
    assert not session.needs_mask
    direct = session_of(engine, spec)
    walk(direct, np.random.default_rng(0), encode(engine, "true")[:1])
    assert direct.written.text.decode() == "true"


# ------------------------------------------------------------ tools


@pytest.mark.parametrize("style", sorted(FORMATS))
@pytest.mark.parametrize("choice", ["required", "add", "now"])
@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_are_valid_calls(
    engine: LlguidanceEngine, style: str, choice: str, parallel: bool
) -> None:
    text = json.dumps({**TOOLS, "choice": choice, "format": style, "parallel": parallel})
    names = set()
    for seed in range(8):
        session = session_of(engine, GrammarSpec("tools", text, "valid"), max_tokens=120)
        walk(session, np.random.default_rng(seed))
        written = session.written.text.decode()
        calls = find_calls(written, FORMATS[style])
        assert len(calls) >= 1
        assert parallel or len(calls) == 1
        for call in calls:
            names.add(call.name)
            arguments = json.loads(call.arguments)
            assert arguments == {} if call.name == "now" else arguments["a"] in range(10)
            start = call.arguments_at
            assert written[start : start + len(call.arguments)] == call.arguments
    assert names == ({choice} if choice in ("add", "now") else {"add", "now"})


@pytest.mark.parametrize("style", ["hermes", "mistral"])
def test_text_is_free_until_the_trigger(engine: LlguidanceEngine, style: str) -> None:
    text = json.dumps({**TOOLS, "choice": "auto", "format": style})
    spec = GrammarSpec("tools", text, "valid")
    end = engine.vocabulary.end_ids[0]
    plain = session_of(engine, spec)
    walk(plain, np.random.default_rng(0), [*encode(engine, "No tool needed."), end])
    assert plain.written.text.decode() == "No tool needed."
    called = session_of(engine, spec, max_tokens=120)
    script = encode(engine, "Let me see. " + FORMATS[style].trigger)
    walk(called, np.random.default_rng(0), script)
    assert called.written.text.decode().startswith("Let me see. " + FORMATS[style].trigger)
    assert find_calls(called.written.text.decode(), FORMATS[style])


def test_llama_calls_at_the_beginning_of_an_answer_or_not_at_all(engine: LlguidanceEngine) -> None:
    spec = GrammarSpec("tools", json.dumps({**TOOLS, "format": "llama"}), "valid")
    called = session_of(engine, spec, max_tokens=120)
    walk(called, np.random.default_rng(0), encode(engine, "{")[:1])
    assert find_calls(called.written.text.decode(), FORMATS["llama"])
    plain = session_of(engine, spec)
    end = engine.vocabulary.end_ids[0]
    walk(plain, np.random.default_rng(0), [*encode(engine, 'An object is {"a": 1}.'), end])
    assert plain.written.text.decode() == 'An object is {"a": 1}.'


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("<tool_call>\n", "hermes"),
        ("{{ '<|python_tag|>' }}", "llama"),
        ("{{ messages }}", "hermes"),
    ],
)
def test_the_format_is_the_one_that_the_template_teaches(template: str, name: str) -> None:
    assert format_of_template(template) == name


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("[]", "an object with"),
        ('{"tools": []}', "1 to 256"),
        ('{"tools": [{"name": ""}]}', "needs a"),
        ('{"tools": [{"name": "a"}], "choice": "b"}', "choice='b'"),
        ('{"tools": [{"name": "a"}], "format": "x"}', "format='x'"),
        ('{"tools": [{"name": "a"}, {"name": "a"}]}', "two tools"),
        ('{"tools": [{"name": "a", "parameters": {"type": "array"}}]}', "no schema of an object"),
    ],
)
def test_tools_that_cannot_be_used_are_refused(
    engine: LlguidanceEngine, tools: str, message: str
) -> None:
    with pytest.raises(GrammarError, match=message):
        session_of(engine, GrammarSpec("tools", tools))


# ------------------------------------------------------------ exclusion


def test_an_excluded_choice_is_never_generated(engine: LlguidanceEngine) -> None:
    spec = GrammarSpec("choices", '["yes","yesterday","no"]', "valid")
    found = set()
    for seed in range(30):
        session = session_of(engine, spec)
        assert session.exclusion.add(b"yes", session.matcher)
        walk(session, np.random.default_rng(seed))
        found.add(session.written.text.decode())
    assert "yes" not in found
    assert "no" in found


def test_a_value_that_failed_is_generated_again_without_it(engine: LlguidanceEngine) -> None:
    schema = json.dumps(
        {
            "type": "object",
            "properties": {"a": {"enum": ["x", "y"]}, "b": {"enum": [1, 12, 2]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        }
    )
    spec = GrammarSpec("json_schema", schema, "valid")
    for wrong in (1, 12, 2):
        for seed in range(6):
            text = f'{{"a":"x","b":{wrong}}}'
            session = session_of(engine, spec, max_tokens=100)
            while session.written.bound_text != text:
                session = session_of(engine, spec, max_tokens=100)
                seed += 100
                walk(session, np.random.default_rng(seed))
            start, end = locate(text).spans["b",]
            kept = session.rewind(session.matcher.restarted(), Failure(("b",), start, end, ""))
            assert session.written.text.decode().startswith('{"a":"x"')
            assert kept == len(session.written.token_ids)
            is_over = False
            rng = np.random.default_rng(seed)
            while not is_over:
                allowed = mask_of(session)
                is_over = session.accept(allowed[rng.integers(len(allowed))], 0.0, 0.0).is_over
            value = json.loads(session.written.bound_text)
            assert value["a"] == "x"
            assert value["b"] in {1, 12, 2} - {wrong}


def test_excluding_the_only_value_is_an_error(engine: LlguidanceEngine) -> None:
    session = session_of(engine, GrammarSpec("json_schema", '{"const":{"a":1}}', "valid"))
    assert not session.exclusion.add(b'{"a":1}', session.matcher)


# ------------------------------------------------------------ fields and healing


def test_the_field_that_is_written_is_known(engine: LlguidanceEngine) -> None:
    text = '{"a b":[1,{"c":"x,]\\"y"}],"d":{"e":null},"f":true}'
    reader = JsonPath()
    seen = []
    for byte in text.encode():
        reader.feed(bytes([byte]))
        if reader.at_value and (not seen or seen[-1] != reader.path):
            seen.append(reader.path)
    for path in locate(text).scalars:
        assert path in seen
    whole = JsonPath()
    whole.feed(text.encode())
    assert whole.path == ()


def test_a_field_is_closed_when_its_tokens_are_used_up(engine: LlguidanceEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"long": {"type": "string"}, "short": {"type": "string", "maxLength": 5}},
        "required": ["long", "short"],
        "additionalProperties": False,
    }
    own = FieldParams("/long", temperature=0.5, max_tokens=4)
    spec = GrammarSpec("json_schema", json.dumps(schema), "valid", fields=(own,))
    session = session_of(engine, spec)
    session.start()
    assert session.field_params is own
    (letter,) = encode(engine, "z")
    for _ in range(4):
        session.accept(letter, 0.0, 0.0)
    assert session.field_params is None
    assert session.written.text.startswith(b'{"long":"zzz')
    assert b'","short":"' in session.written.text


def test_healing_spells_the_prompt_s_end_again_and_then_obeys_the_constraint(
    engine: LlguidanceEngine,
) -> None:
    for seed in range(10):
        spec = GrammarSpec("regex", r"[a-c]{2,3}\d", heal="x a")
        session = session_of(engine, spec, max_tokens=30)
        walk(session, np.random.default_rng(seed))
        assert regex.fullmatch(r"x a[a-c]{2,3}\d", session.written.text.decode())
        assert regex.fullmatch(r"[a-c]{2,3}\d", session.written.bound_text)
    free = session_of(engine, GrammarSpec("free", "", heal=" th"), max_tokens=6)
    walk(free, np.random.default_rng(0))
    assert free.written.text.startswith(b" th")
    assert not free.needs_mask


@pytest.mark.parametrize("finish", ["valid", "cut"])
@pytest.mark.parametrize("jump_forward", [True, False])
def test_the_short_way_for_a_plain_token_ends_where_the_long_one_does(
    engine: LlguidanceEngine, finish: Any, jump_forward: bool
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 12},
            "rating": {"type": "integer", "maximum": 50, "minimum": 0},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
        },
        "required": ["title", "rating", "tags"],
        "additionalProperties": False,
    }
    spec = GrammarSpec("json_schema", json.dumps(schema), finish, jump_forward=jump_forward)
    num_plain = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        quick, slow = (session_of(engine, spec, max_tokens=40 + 20 * seed) for _ in range(2))
        accepted = quick.start()
        assert slow.start() == accepted
        while not accepted.is_over:
            allowed = mask_of(quick)
            assert mask_of(slow) == allowed
            token = allowed[rng.integers(len(allowed))]
            plain = quick.accept_plain(token)
            num_plain += plain is not None
            accepted = plain if plain is not None else quick.accept(token, 0.0, 0.0)
            if accepted is GOES_ON:
                accepted = Accepted([token], False, False)
            assert slow.accept(token, 0.0, 0.0) == accepted
            assert quick.written.token_ids == slow.written.token_ids
            assert quick.written.forced_at == slow.written.forced_at
        assert quick.written.text == slow.written.text
    assert num_plain > 100


def test_ways_that_were_found_before_are_tried_before_a_search(
    engine: LlguidanceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts under one constraint share them; whatever is remembered, every text is closed."""
    schema = {
        "type": "object",
        "properties": {
            name: {"type": "array", "items": {"enum": ["left", "right", "up"]}, "minItems": 1}
            for name in ("first", "second", "third")
        },
        "required": ["first", "second", "third"],
        "additionalProperties": False,
    }
    spec = GrammarSpec("json_schema", json.dumps(schema), "valid")
    num_searches = 0
    search = Steering.search

    def counted(steering: Steering, limit: int, piece: bytes = b"") -> list[int] | None:
        nonlocal num_searches
        num_searches += 1
        return search(steering, limit, piece)

    monkeypatch.setattr(Steering, "search", counted)
    first = session_of(engine, spec, max_tokens=45)
    compiled, start = first.compiled, first.matcher.fork()
    counts = []
    for seed in range(12):
        before = num_searches
        session = session_of(engine, spec, max_tokens=45)
        session.compiled, session.matcher = compiled, start.fork()
        walk(session, np.random.default_rng(seed % 3))
        json.loads(session.written.bound_text)
        counts.append(num_searches - before)
    assert sum(counts[3:]) < sum(counts[:3])
