"""From a client's constraint to what the engine compiles."""

from __future__ import annotations

from typing import Literal

from radixrt.protocol import Constraint
from radixrt.runtime.wire import FieldParams, GrammarSpec


def grammar_spec(constraint: Constraint, *, heal: str = "", marks: bool = False) -> GrammarSpec:
    """Return the engine's form of a constraint; ``heal`` and ``marks`` as in ``GrammarSpec``."""
    return GrammarSpec(
        kind=constraint.kind,
        text=constraint.text,
        finish=constraint.finish or default_finish(constraint.kind),
        strict=constraint.strict,
        indent=constraint.indent,
        any_order=constraint.any_order,
        retries=constraint.retries,
        after=constraint.after,
        fields=tuple(
            FieldParams(f.pointer, f.temperature, f.top_p, f.top_k, f.min_p, f.max_tokens)
            for f in constraint.fields
        ),
        exclude=constraint.exclude,
        jump_forward=constraint.jump_forward,
        heal=heal,
        marks=marks,
        spaced=constraint.spaced,
    )


def default_finish(kind: str) -> Literal["valid", "cut"]:
    """Return what ``finish=None`` means: a regex may be cut by its budget, all else is closed."""
    return "cut" if kind == "regex" else "valid"
