"""Compiled constraints for the engine's loop: from the cache, or soon from a thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from radixrt.runtime.grammar.base import GrammarTimeout
from radixrt.runtime.grammar.cache import Entry, GrammarCache, Key, key_of
from radixrt.runtime.grammar.compile import adopt, build, check_text, compile_grammar
from radixrt.runtime.grammar.compiled import Validator
from radixrt.runtime.grammar.judges import CHECK_S, JudgedValidator, Judges, patience
from radixrt.runtime.grammar.llguidance import LlguidanceEngine
from radixrt.runtime.grammar.workers import Job, Work, Workers
from radixrt.runtime.wire import GrammarSpec

COMPILE_TIMEOUT_S = 0.25
"""How long one compilation may take."""

WORK_TIMEOUT_S = 5.0
"""How long other work of a thread may take."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A constraint that was asked for. ``entry`` is there when it could be compiled."""

    key: Key
    job: Job | None
    entry: Entry | None = None


class GrammarService:
    """Hands out compiled constraints. Used by the loop's thread alone.

    The tokenizer is read, by a worker, when the first constraint comes or with ``prepare``: it
    takes up to a second.
    """

    def __init__(
        self,
        build_engine: Callable[[], LlguidanceEngine],
        *,
        judges: Judges | None = None,
        num_threads: int = 2,
        capacity: int = 256,
        timeout_s: float = COMPILE_TIMEOUT_S,
    ) -> None:
        """``judges`` compile every constraint before this process does, and validate texts.
        ``num_threads`` 0 works in the caller's thread, for tests."""
        self._build_engine = build_engine
        self._judges = judges
        self._engine: LlguidanceEngine | None = None
        self._has_begun = False
        self._lock = Lock()
        self._workers = Workers(num_threads)
        self._timeout_s = timeout_s
        self.cache = GrammarCache(capacity)
        self._jobs: dict[Key, Job] = {}
        self._growing: list[tuple[Entry, Job]] = []
        self.compile_s = 0.0
        self.num_compiled = 0
        self.num_refused = 0
        self.num_timeouts = 0

    @property
    def engine(self) -> LlguidanceEngine:
        """The engine; built at the first use."""
        with self._lock:
            if self._engine is None:
                self._engine = self._build_engine()
            return self._engine

    def prepare(self) -> None:
        """Let a worker read the tokenizer now. It keeps the interpreter lock for most of that: who
        generates while the first constraint comes would wait for it."""
        self.submit(lambda: self.engine.vocabulary.build_look_ups())

    def request(self, spec: GrammarSpec) -> Ticket:
        """Ask for a constraint. Raises ``GrammarTimeout`` when no thread is left to compile it."""
        key = key_of(spec)
        entry = self.cache.get(key)
        if entry is not None:
            self._grow(entry)
            return Ticket(key, None, entry)
        job = self._jobs.get(key)
        if job is None:
            if not self._has_begun:
                job = self._workers.submit(self._first(spec), 60.0)
            else:
                limit = self._timeout_s
                job = self._workers.submit(self._compiling(spec), self._patience(limit), limit)
            self._jobs[key] = job
        return Ticket(key, job)

    def _patience(self, cpu_s: float) -> float:
        """Return the seconds until a thread counts as stuck. Judges keep to ``cpu_s`` themselves,
        after which this process still has its part to do."""
        return cpu_s if self._judges is None else patience(cpu_s) + cpu_s

    def close(self) -> None:
        """End the threads and the processes; nothing can be compiled afterwards."""
        self._workers.close()
        if self._judges is not None:
            self._judges.close()

    def is_ready(self, ticket: Ticket) -> bool:
        """Whether a ticket has its entry. Raises ``GrammarError`` when it will never have one."""
        if ticket.entry is not None:
            return True
        job = ticket.job
        assert job is not None
        if not job.is_done:
            if self._workers.abandon_late(job):
                self._late(ticket, job)
            return False
        if job.result is not None and ticket.entry is None:
            ticket.entry = self._keep(ticket.key, job)
            return True
        self._jobs.pop(ticket.key, None)
        if isinstance(job.error, GrammarTimeout):
            self.num_timeouts += 1
        self.num_refused += 1
        job.value()
        return False

    def _late(self, ticket: Ticket, job: Job) -> None:
        self.num_timeouts += 1
        raise GrammarTimeout(
            f"compiling the constraint takes over {job.timeout_s * 1000:.0f} ms; simplify it, or "
            "try again: when it is done after all, it is kept"
        )

    def check(self, validator: Validator, text: str) -> Job:
        """Queue the final validation of a text for the threads."""
        if isinstance(validator, JudgedValidator):
            judged = validator
            return self._workers.submit(
                lambda cpu_s: judged.check(text, cpu_s), self._patience(CHECK_S), CHECK_S
            )
        return self.submit(lambda: validator.check(text))

    def submit(self, work: Callable[[], Any]) -> Job:
        """Queue other work for the threads."""
        return self._workers.submit(lambda _: work(), WORK_TIMEOUT_S)

    def is_late(self, job: Job) -> bool:
        """Whether work that was submitted takes longer than it may."""
        return self._workers.abandon_late(job)

    def collect(self) -> None:
        """Take in what threads have finished that nobody waits for."""
        for key, job in [*self._jobs.items()]:
            if job.is_done:
                del self._jobs[key]
                if job.result is not None:
                    self._keep(key, job)
        for entry, job in [*self._growing]:
            if job.is_done:
                self._growing.remove((entry, job))
                entry.is_growing = False
                if job.result is not None:
                    entry.templates.append(job.result)

    def snapshot(self) -> dict[str, float]:
        """Return the counters."""
        return {
            "grammar_compile_s": self.compile_s,
            "grammars_compiled": self.num_compiled,
            "grammars_refused": self.num_refused,
            "grammars_timed_out": self.num_timeouts,
            "grammars_cached": len(self.cache),
            "grammar_hits": self.cache.num_hits,
            "grammar_misses": self.cache.num_misses,
            "grammars_evicted": self.cache.num_evicted,
        }

    def _first(self, spec: GrammarSpec) -> Work:
        """The job of a constraint that comes before the tokenizer was read, here and there."""

        def work(_: float) -> Entry:
            if self._judges is not None:
                self._judges.start()  # they read the tokenizer as well, meanwhile
            self.engine.vocabulary.build_look_ups()  # the loop shall not wait for them later
            try:
                entry: Entry = self._compiling(spec)(self._timeout_s)
                return entry
            finally:
                self._has_begun = True

        return work

    def _compiling(self, spec: GrammarSpec) -> Work:
        engine, judges = self.engine, self._judges

        def work(cpu_s: float) -> Entry:
            began = time.perf_counter()
            if judges is None:
                compiled, matcher = compile_grammar(engine, spec)
            else:
                check_text(spec)
                judged = judges.compile(spec, cpu_s)
                validator = JudgedValidator(judges, spec.kind, spec.text)
                compiled, matcher = adopt(engine, spec, judged, validator)
            # The first mask takes longest: the loop shall not wait for it.
            matcher.fork().fill(np.zeros(engine.mask_len, np.int32))
            return Entry(compiled, [matcher], time.perf_counter() - began)

        return work

    def _keep(self, key: Key, job: Job) -> Entry:
        self._jobs.pop(key, None)
        entry: Entry = job.result
        known = self.cache._entries.get(key)
        if known is not None:
            return known
        self.num_compiled += 1
        self.compile_s += entry.seconds
        self.cache.put(key, entry)
        return entry

    def _grow(self, entry: Entry) -> None:
        if entry.wants_template:
            engine, compiled = self.engine, entry.compiled
            entry.is_growing = True
            self._growing.append((entry, self.submit(lambda: build(engine, compiled))))
