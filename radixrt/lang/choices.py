"""The three ways ``select`` scores its options, under SGLang's names."""

from __future__ import annotations

from dataclasses import dataclass

from radixrt.errors import InvalidArgument
from radixrt.protocol import Method


@dataclass(frozen=True, slots=True)
class ChoicesMethod:
    """A scoring of options; ``wire`` is the protocol's word for it."""

    name: str
    wire: Method


token_length_normalized = ChoicesMethod("token_length_normalized", "token_length_normalized")
"""The highest mean log probability of an option's tokens."""

greedy_token_selection = ChoicesMethod("greedy_token_selection", "greedy_token_selection")
"""The option whose tokens win position by position; a shorter option that is exhausted goes on with
its mean."""

unconditional_likelihood_normalized = ChoicesMethod(
    "unconditional_likelihood_normalized", "unconditional_likelihood"
)
"""The highest mean of log probability minus log probability without the text before the option."""

_METHODS = {
    method.name: method
    for method in (
        token_length_normalized,
        greedy_token_selection,
        unconditional_likelihood_normalized,
    )
}


def choices_method(method: ChoicesMethod | str | None) -> ChoicesMethod:
    """Return the scoring named or given; None is ``token_length_normalized``."""
    if method is None:
        return token_length_normalized
    if isinstance(method, ChoicesMethod):
        return method
    found = _METHODS.get(method) if isinstance(method, str) else None
    if found is None:
        raise InvalidArgument("choices_method", method, f"use one of {', '.join(_METHODS)}")
    return found
