"""Going back to before a value that failed the final check."""

from __future__ import annotations

from radixrt.runtime.grammar.base import GrammarError, Matcher
from radixrt.runtime.grammar.exclusion import Exclusion
from radixrt.runtime.grammar.validate import Failure
from radixrt.runtime.grammar.written import Written


def take_back(written: Written, exclusion: Exclusion, start: Matcher, failure: Failure) -> None:
    """Cut a text at the beginning of a value that failed, and exclude it. ``start``, a matcher at
    the constraint's beginning, accepts what is kept.

    Raises ``GrammarError`` when the constraint leaves no other text; nothing is cut then.
    """
    assert written.bound_at is not None
    bound = written.bound_text
    value_at = written.healed_at + len(bound[: failure.start].encode())
    value_end = written.healed_at + len(bound[: failure.end].encode())
    if not exclusion.add(bytes(written.text[written.bound_at : value_end]), start):
        raise GrammarError(f"the constraint leaves no valid text: {failure.message}")
    kept = _tokens_before(written, value_at)
    bound_ids = _bound_part(written, kept, written.bound_at)
    if bound_ids and not start.try_advance(bound_ids):
        raise GrammarError("the text that is kept is not the constraint's")
    written.cut(len(kept))


def _tokens_before(written: Written, at: int) -> list[int]:
    """Return the tokens of a text that end before byte ``at`` or there."""
    length = 0
    for index, token_id in enumerate(written.token_ids):
        length += len(written.vocabulary.texts[token_id])
        if length > at:
            return written.token_ids[:index]
    return list(written.token_ids)


def _bound_part(written: Written, kept: list[int], bound_at: int) -> list[int]:
    """Return what the first tokens ``kept`` of a text spell from byte ``bound_at`` on, as tokens:
    the one in which the constraint begins is spelled anew."""
    vocabulary, length, bound_ids = written.vocabulary, 0, []
    for token_id in kept:
        piece = vocabulary.texts[token_id]
        if length >= bound_at:
            bound_ids.append(token_id)
        elif length + len(piece) > bound_at:
            bound_ids += vocabulary.encode(piece[bound_at - length :])
        length += len(piece)
    if length < bound_at:
        raise GrammarError("a token holds both free and constrained text")
    return bound_ids
