"""Constraints judged in other processes: the same as here, and nothing they do reaches further."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import radixrt
from radixrt.runtime.grammar.base import GrammarError, GrammarTimeout
from radixrt.runtime.grammar.compile import adopt, compile_grammar, validator_of
from radixrt.runtime.grammar.judges import Judges
from radixrt.runtime.grammar.llguidance import LlguidanceEngine
from radixrt.runtime.grammar.service import GrammarService
from radixrt.runtime.grammar.verdicts import QUICK_S
from radixrt.runtime.wire import GrammarSpec

TOKENIZER = Path(radixrt.__file__).parent / "models" / "nano" / "tokenizer.json"

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5000},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}

SPECS = [
    GrammarSpec("json_schema", json.dumps(PERSON), "valid"),
    GrammarSpec("json_schema", json.dumps(PERSON), "valid", indent=2, any_order=True),
    GrammarSpec("regex", r"[a-z]{2,9}@x\.org", "valid"),
    GrammarSpec("choices", json.dumps(["red", "green"]), "valid", heal="re"),
    GrammarSpec("gbnf", 'root ::= "a" root?'),
    GrammarSpec(
        "tools",
        json.dumps({"tools": [{"name": "f", "parameters": PERSON}], "choice": "f"}),
        "valid",
    ),
]

ENDLESS = GrammarSpec(
    "json_schema",
    json.dumps(
        {
            "type": "object",
            "properties": {
                f"p{i}": {"type": "string", "pattern": "a{1,50}b{1,50}"} for i in range(2500)
            },
        }
    ),
)
"""Takes seconds and tens of MiB."""


@pytest.fixture(scope="module")
def judges() -> Iterator[Judges]:
    judges = Judges(TOKENIZER, 4160, (0,))
    yield judges
    judges.close()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_a_constraint_is_what_it_would_be_if_it_were_compiled_here(
    engine: LlguidanceEngine, judges: Judges, spec: GrammarSpec
) -> None:
    here, matcher = compile_grammar(engine, spec)
    validator = validator_of(spec.kind, spec.text)
    there, other = adopt(engine, spec, judges.compile(spec, 5.0), validator)
    for name in ("grammar", "is_json", "is_enforced", "keywords", "warnings", "limits"):
        assert getattr(there, name) == getattr(here, name)
    assert (there.shortest, there.opening, there.tools) == (
        here.shortest,
        here.opening,
        here.tools,
    )
    assert type(there.validator) is type(here.validator)
    way = list(here.shortest or [])
    assert matcher.try_advance(way) == other.try_advance(way) is True


@pytest.mark.parametrize(
    "text", ['{"name":"a","age":1,"tags":["b"]}', '{"name":"a","age":1,"tags":["b","b"]}', "{"]
)
def test_a_text_is_validated_as_it_would_be_here(judges: Judges, text: str) -> None:
    schema = json.dumps(PERSON)
    validator = validator_of("json_schema", schema)
    assert validator is not None
    assert judges.check("json_schema", schema, text) == validator.check(text)


def test_errors_say_what_is_wrong_and_the_process_goes_on(judges: Judges) -> None:
    before = judges.num_ended
    with pytest.raises(GrammarError, match="not JSON"):
        judges.compile(GrammarSpec("json_schema", "{"), 5.0)
    with pytest.raises(GrammarError, match="leads nowhere"):
        judges.check("json_schema", json.dumps({"$ref": "https://x.invalid/a"}), "1")
    assert judges.num_ended == before


def test_who_takes_too_long_is_ended_alone(judges: Judges) -> None:
    before = judges.num_ended
    with pytest.raises(GrammarTimeout, match="takes over 20 ms"):
        judges.compile(ENDLESS, 0.02)
    assert judges.num_ended == before + 1
    assert judges.compile(SPECS[2], 5.0).grammar


def test_who_takes_too_much_memory_is_ended_alone() -> None:
    judges = Judges(TOKENIZER, 4160, (0,), memory=8 << 20)
    try:
        with pytest.raises(GrammarError, match=r"memory|MiB"):
            judges.compile(ENDLESS, 60.0)
        assert judges.compile(SPECS[2], 5.0).grammar
    finally:
        judges.close()


def test_a_process_that_dies_is_a_failure_of_one_constraint(judges: Judges) -> None:
    judges.compile(SPECS[2], 5.0)
    child, first = judges._children[-1], judges._process
    assert first is not None
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(GrammarError, match="ended the process"):
        judges.compile(SPECS[2], 5.0)
    first.kill()
    first.wait()
    for child in list(judges._children):
        judges._end(child)
    assert judges.compile(SPECS[2], 5.0).grammar
    assert judges._process is not first


def test_closing_lets_nobody_wait(judges: Judges) -> None:
    judges = Judges(TOKENIZER, 4160, (0,))
    judges.compile(SPECS[2], 5.0)
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            judges.compile(ENDLESS, 30.0)
        except GrammarError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while any(judges._idle.values()):
        threading.Event().wait(0.001)
    judges.close()
    judges.close()
    thread.join(20)
    assert not thread.is_alive()
    assert raised


def test_a_service_compiles_what_its_judges_admit(engine: LlguidanceEngine, judges: Judges) -> None:
    service = GrammarService(lambda: engine, judges=judges, num_threads=0, timeout_s=0.05)
    service.is_ready(service.request(SPECS[2]))  # the engine is there from now on
    ticket = service.request(SPECS[0])
    assert service.is_ready(ticket)
    assert ticket.entry is not None
    validator = ticket.entry.compiled.validator
    assert validator is not None
    failure = validator.check('{"name":"a","age":1,"tags":["b","b"]}')
    assert failure is not None
    late = service.request(ENDLESS)
    with pytest.raises(GrammarTimeout, match="simplify"):
        service.is_ready(late)
    assert service.num_timeouts == 1
    half = service.request(GrammarSpec("regex", "a\ud800b"))
    with pytest.raises(GrammarError, match="surrogate"):
        service.is_ready(half)


def test_who_is_asked_what_takes_long_gives_way_to_the_others() -> None:
    judges = Judges(TOKENIZER, 4160, (0,))
    try:
        judges.compile(SPECS[2], QUICK_S)
        judges.compile(SPECS[2], 5.0)
        judges.compile(SPECS[2], QUICK_S)
        quick, long = (os.getpriority(os.PRIO_PROCESS, c.pid) for c in judges._children)
        assert os.getpriority(os.PRIO_PROCESS, 0) < quick < long
        assert judges._process is not None
        # Where sessions share processors first, niceness counts within one alone.
        assert os.getsid(judges._process.pid) == os.getsid(0)
        assert os.getpgid(judges._process.pid) != os.getpgid(0)
    finally:
        judges.close()


def test_threads_that_come_and_go_leave_no_processes_behind() -> None:
    judges = Judges(TOKENIZER, 4160, (0,))
    try:
        for _ in range(4):
            thread = threading.Thread(target=judges.compile, args=(SPECS[2], 5.0))
            thread.start()
            thread.join()
        assert len(judges._children) == 1
    finally:
        judges.close()
