"""Generations without a model: a session that is fed tokens drawn uniformly from its masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from radixrt.runtime.grammar.budget import Budget
from radixrt.runtime.grammar.compile import compile_grammar
from radixrt.runtime.grammar.exclusion import Exclusion
from radixrt.runtime.grammar.llguidance import LlguidanceEngine, LlguidanceMatcher
from radixrt.runtime.grammar.session import Session
from radixrt.runtime.grammar.vocabulary import allowed_ids
from radixrt.runtime.wire import GrammarSpec


def accepts(matcher: LlguidanceMatcher, engine: LlguidanceEngine, text: str) -> bool:
    """Whether a matcher at its start takes the whole text as a complete one."""
    fork = matcher.fork()
    return fork.try_advance(engine.vocabulary.encode(text.encode())) and fork.is_accepting


def session_of(
    engine: LlguidanceEngine,
    spec: GrammarSpec,
    *,
    max_tokens: int = 200,
    min_tokens: int = 0,
    prompt_tail: bytes = b"",
) -> Session:
    """Return a session at its beginning."""
    compiled, matcher = compile_grammar(engine, spec)
    return Session(
        spec,
        compiled,
        engine.vocabulary,
        Budget(max_tokens, min_tokens),
        frozenset(engine.vocabulary.end_ids),
        matcher,
        Exclusion(engine.vocabulary),
        prompt_tail=prompt_tail,
    )


def walk(session: Session, rng: np.random.Generator, script: Sequence[int] = ()) -> list[int]:
    """Generate to the end: the tokens of ``script`` as far as they are allowed, then uniformly from
    the masks (from all tokens where there is none). Returns all tokens."""
    vocabulary = session.vocabulary
    bitmask = np.zeros(-(-len(vocabulary) // 32), np.int32)
    accepted = session.start()
    tokens = list(accepted.token_ids)
    given = iter(script)
    while not accepted.is_over:
        ids: Any = np.arange(len(vocabulary) - 64)
        if session.needs_mask:
            session.matcher.fill(bitmask)
            session.restrict(bitmask)
            ids = allowed_ids(bitmask, len(vocabulary))
        token = next(given, None)
        if token is None or token not in ids:
            given = iter(())
            token = int(ids[rng.integers(len(ids))])
        accepted = session.accept(token, 0.0, 0.0)
        tokens += accepted.token_ids
        assert tokens == session.written.token_ids
    return tokens
