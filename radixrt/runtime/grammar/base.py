"""What the engine needs of a constraint on generated tokens."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.wire import GrammarSpec


class GrammarError(ValueError):
    """A constraint that cannot be compiled, or a matcher that gave up; the message says why."""


class Matcher(Protocol):
    """The state of one constrained generation. Not safe for use from two threads at once."""

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        """Write which tokens may come next, one bit a token, int32 [ceil(V / 32)].

        End tokens are allowed only where the text so far is complete. Raises ``GrammarError``.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Accept a token that the last mask allowed; ``GrammarError`` for any other."""
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


class GrammarCompiler(Protocol):
    """Turns the text of a constraint into a matcher at its start."""

    def compile(self, spec: GrammarSpec) -> Matcher:
        """Return a fresh matcher; ``GrammarError`` for a constraint that cannot be compiled."""
        ...
