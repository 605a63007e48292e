"""How many tokens a constrained text may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.opening import FreeText


@dataclass(frozen=True, slots=True)
class Budget:
    """``max_tokens`` a text may have, ``min_tokens`` before it may end."""

    max_tokens: int
    min_tokens: int

    def check_start(self, shortest: Sequence[int] | None, free: FreeText | None) -> None:
        """Raise ``GrammarError`` when a text cannot be closed: ``shortest`` is the shortest one
        under the constraint, if one was found, ``free`` what comes first."""
        if shortest is None or (free is not None and free.is_optional):
            return
        needed = len(shortest) + (free.num_closing if free is not None else 0)
        if needed > self.max_tokens:
            raise GrammarError(
                f"max_tokens={self.max_tokens}: the shortest text that was found takes "
                f"{needed} tokens; allow at least that many, or set finish='cut'"
            )

    def check_rest(self, num_free: int, num_bound: int) -> None:
        """Raise ``GrammarError`` when ``num_free`` tokens of free text leave too few for a
        constraint that takes at least ``num_bound``."""
        if num_free + num_bound > self.max_tokens:
            raise GrammarError(
                f"max_tokens={self.max_tokens}: {num_free} tokens came before the constraint, "
                f"which takes at least {num_bound}; allow more tokens"
            )
