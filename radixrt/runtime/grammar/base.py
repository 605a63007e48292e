"""What the engine needs of a constraint on generated tokens."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class GrammarError(ValueError):
    """A constraint that cannot be compiled, or a matcher that gave up; the message says why."""


class EngineRefusal(GrammarError):
    """What the engine says of a grammar, in its own words; ``said`` is all of it."""

    def __init__(self, said: str) -> None:
        super().__init__(said if len(said) <= 400 else said[:399] + "…")
        self.said = said


class GrammarTimeout(GrammarError):
    """A constraint whose compilation took longer than it may."""


class Matcher(Protocol):
    """The state of one constrained text. Not safe for use from two threads at once."""

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        """Write which tokens may come next, one bit a token, int32 [ceil(V / 32)].

        End tokens are allowed only where the text so far is complete. Raises ``GrammarError``.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Accept a token that the last mask allowed; ``GrammarError`` for any other."""
        ...

    def allows(self, token_id: int) -> bool:
        """Whether the next mask allows a token; takes a microsecond."""
        ...

    def try_advance(self, token_ids: list[int]) -> bool:
        """Accept all of ``token_ids``, or none: then the state is as before."""
        ...

    def forced(self) -> list[int]:
        """Return the tokens that are the only possible ones from here, in the spelling that the
        tokenizer gives the text; accepts nothing."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Take the last ``num_tokens`` accepted tokens back."""
        ...

    def fork(self) -> Matcher:
        """Return an independent matcher in the same state."""
        ...

    @property
    def is_accepting(self) -> bool:
        """Whether the text so far is complete (it may still be continued)."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end token can follow."""
        ...
