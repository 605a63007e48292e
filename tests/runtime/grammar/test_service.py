"""Compiled constraints from threads: the cache, late compilations, limits that are shared."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from radixrt.runtime.grammar import service as service_module
from radixrt.runtime.grammar.base import GrammarError, GrammarTimeout
from radixrt.runtime.grammar.cache import Entry
from radixrt.runtime.grammar.compile import compile_grammar
from radixrt.runtime.grammar.llguidance import LlguidanceEngine, regex_grammar
from radixrt.runtime.grammar.service import GrammarService, Ticket
from radixrt.runtime.grammar.verdicts import QUICK_S
from radixrt.runtime.grammar.workers import MOST_ABANDONED, Workers
from radixrt.runtime.wire import GrammarSpec


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def take(service: GrammarService, spec: GrammarSpec) -> Entry:
    ticket = service.request(spec)
    wait_for(lambda: service.is_ready(ticket))
    assert ticket.entry is not None
    return ticket.entry


def test_a_late_compilation_is_refused_and_kept_once_it_is_done(
    engine: LlguidanceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slow(engine: LlguidanceEngine, spec: GrammarSpec) -> object:
        if spec.text == "slow":
            go_on.wait(20)
        return compile_grammar(engine, spec)

    monkeypatch.setattr(service_module, "compile_grammar", slow)
    service = GrammarService(lambda: engine, num_threads=1, timeout_s=0.02)
    take(service, GrammarSpec("regex", "first"))  # the engine is there from now on
    late = service.request(GrammarSpec("regex", "slow"))

    def is_refused(ticket: Ticket) -> bool:
        try:
            return service.is_ready(ticket)
        except GrammarTimeout:
            return True

    wait_for(lambda: is_refused(late))
    assert service.num_timeouts >= 1
    # The stuck thread was replaced: others are compiled meanwhile.
    assert take(service, GrammarSpec("regex", "other")).compiled.grammar
    assert service.num_compiled == 2
    go_on.set()
    service_job = late.job
    assert service_job is not None
    wait_for(lambda: service_job.is_done)
    service.collect()
    again = service.request(GrammarSpec("regex", "slow"))
    assert again.entry is not None
    assert service.cache.num_hits == 1


def test_too_many_stuck_threads_refuse_more_work() -> None:
    workers = Workers(1)
    go_on = threading.Event()
    stuck = []
    for _ in range(MOST_ABANDONED):
        job = workers.submit(lambda _: go_on.wait(20), 0.0)
        wait_for(lambda job=job: workers.abandon_late(job))  # type: ignore[misc]
        stuck.append(job)
    with pytest.raises(GrammarTimeout, match="try again later"):
        workers.submit(lambda _: None, 1.0)
    go_on.set()
    wait_for(lambda: all(job.is_done for job in stuck))
    wait_for(lambda: workers._num_abandoned == 0)
    done = workers.submit(lambda _: 7, 1.0)
    wait_for(lambda: done.is_done)
    assert done.value() == 7
    workers.close()


@pytest.mark.parametrize("num_threads", [0, 1])
def test_work_that_takes_long_is_begun_anew_with_all_of_its_time(num_threads: int) -> None:
    workers, asked = Workers(num_threads), []

    def work(cpu_s: float) -> str:
        asked.append(cpu_s)
        if cpu_s < 10 * QUICK_S:
            raise GrammarTimeout("too long")
        return "done"

    job = workers.submit(work, 60.0, 10 * QUICK_S)
    wait_for(lambda: job.is_done)
    assert (job.value(), asked) == ("done", [QUICK_S, 10 * QUICK_S])
    late = workers.submit(work, 60.0, 5 * QUICK_S)
    wait_for(lambda: late.is_done)
    with pytest.raises(GrammarTimeout):
        late.value()
    assert asked[2:] == [QUICK_S, 5 * QUICK_S]
    workers.close()


def test_nobody_waits_behind_work_that_takes_long() -> None:
    workers, go_on = Workers(1), threading.Event()

    def work(cpu_s: float) -> None:
        if cpu_s <= QUICK_S:
            raise GrammarTimeout("too long")
        go_on.wait(20)

    long = [workers.submit(work, 60.0, 1.0) for _ in range(3)]
    quick = workers.submit(lambda cpu_s: cpu_s, 60.0, 1.0)
    wait_for(lambda: quick.is_done)
    assert quick.value() == QUICK_S
    assert not any(job.is_done for job in long)
    go_on.set()
    wait_for(lambda: all(job.is_done for job in long))
    workers.close()


def test_a_tokenizer_can_be_read_before_it_is_needed(engine: LlguidanceEngine) -> None:
    built = []

    def build() -> LlguidanceEngine:
        built.append(engine)
        return engine

    service = GrammarService(build, num_threads=1)
    service.prepare()
    wait_for(lambda: bool(built))
    assert take(service, GrammarSpec("regex", "ab")).compiled.grammar
    assert len(built) == 1


def test_two_calls_share_one_compilation_and_errors_are_not_kept(engine: LlguidanceEngine) -> None:
    service = GrammarService(lambda: engine, num_threads=2)
    first = service.request(GrammarSpec("regex", "ab"))
    second = service.request(GrammarSpec("regex", "ab"))
    assert first.job is second.job
    wait_for(lambda: service.is_ready(first) and service.is_ready(second))
    assert first.entry is second.entry
    assert service.num_compiled == 1
    for _ in range(2):
        bad = service.request(GrammarSpec("regex", "("))
        assert bad.job is not None
        job = bad.job
        wait_for(lambda job=job: job.is_done)  # type: ignore[misc]
        with pytest.raises(GrammarError):
            service.is_ready(bad)
    assert service.num_refused == 2
    assert len(service.cache) == 1


def test_a_constraint_that_is_used_a_lot_gets_templates_of_its_own(
    engine: LlguidanceEngine,
) -> None:
    service = GrammarService(lambda: engine, num_threads=0)
    for _ in range(40):
        entry = take(service, GrammarSpec("regex", "[ab]{9}"))
        entry.fork()
        service.collect()
    assert len(entry.templates) == 4


def test_a_text_that_uses_up_the_shared_states_fails_alone(engine: LlguidanceEngine) -> None:
    matcher = engine.build(regex_grammar("[ab]{1,9}"))
    victim, culprit = matcher.fork(), matcher.fork()
    (letter,) = engine.vocabulary.encode(b"a")
    victim.advance(letter)
    # Misuse is an error that the engine never leaves: here it is the culprit's alone.
    (other,) = engine.vocabulary.encode(b"z")
    with pytest.raises(GrammarError):
        culprit.advance(other)
    assert culprit.is_broken
    mask = np.zeros(engine.mask_len, np.int32)
    victim.fill(mask)
    victim.advance(letter)
    assert victim.is_accepting
    # A victim of somebody else's limit is built again where it was.
    entry = Entry(compile_grammar(engine, GrammarSpec("regex", "[ab]{1,9}"))[0], [culprit, matcher])
    assert not entry.fork().is_broken
    assert entry.templates == [matcher]


def test_a_broken_matcher_comes_back_where_it_was(engine: LlguidanceEngine) -> None:
    matcher = engine.build(regex_grammar("ab{3}c"))
    for token in engine.vocabulary.encode(b"ab"):
        matcher.advance(token)
    good = np.zeros(engine.mask_len, np.int32)
    matcher.fill(good)
    (wrong,) = engine.vocabulary.encode(b"z")
    matcher.inner.consume_token(wrong)  # as if another text had broken the lexer they share
    assert matcher.is_broken
    again = np.zeros(engine.mask_len, np.int32)
    matcher.fill(again)
    assert (good == again).all()


@pytest.mark.parametrize(
    ("kind", "text", "why", "way_out"),
    [
        ("regex", "(a", "unclosed group", "Rust's regex crate"),
        ("regex", "x" * 200 + "(?=y)", "look-ahead", "without look-around"),
        ("json_schema", '{"$ref":"#/$defs/x"}', "'/$defs/x' does not exist", "change that part"),
        ("json_schema", '{"minimum":5,"maximum":2,"type":"integer"}', "greater than", "change"),
        ("grammar", "start: foo", 'line 1, column 8: unknown name: "foo"', "simplify"),
    ],
)
def test_a_refusal_names_the_argument_its_value_the_reason_and_a_way_out(
    engine: LlguidanceEngine, kind: str, text: str, why: str, way_out: str
) -> None:
    with pytest.raises(GrammarError) as caught:
        compile_grammar(engine, GrammarSpec(kind, text))  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(f"{kind}='{text[:40]}")
    assert why in message
    assert way_out in message
    assert "\n" not in message
    assert len(message) < 300
