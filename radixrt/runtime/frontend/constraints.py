"""From a client's constraint to what the engine compiles."""

from __future__ import annotations

import json
from typing import Literal

from radixrt.errors import InvalidArgument
from radixrt.protocol import Constraint
from radixrt.runtime.frontend.reasoning import REASONING_MARKS
from radixrt.runtime.grammar.tool_calls import TOOL_MARKS
from radixrt.runtime.wire import FieldParams, GrammarSpec


def grammar_spec(
    constraint: Constraint, tool_format: str, *, heal: str = "", marks: bool = False
) -> GrammarSpec:
    """Return the engine's form of a constraint.

    ``tool_format`` is the one that the model's template teaches; ``heal`` and ``marks`` as in
    ``GrammarSpec``. Raises ``InvalidArgument`` for options that cannot go together.
    """
    is_free_first = bool(constraint.after) or constraint.kind == "tools"
    if heal and is_free_first:
        raise InvalidArgument("heal", True, "leave it out with after= and tools=")
    text = constraint.text
    return GrammarSpec(
        kind=constraint.kind,
        text=_with_format(text, tool_format) if constraint.kind == "tools" else text,
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


def healing_spec(heal: str, *, marks: bool) -> GrammarSpec:
    """Return what binds a generation that is free but for the text it has to begin with."""
    return GrammarSpec(kind="free", text="", heal=heal, marks=marks)


def shown_names(constraint: Constraint | None) -> tuple[str, ...]:
    """Return the names of control tokens that count as text: those that mark reasoning and, under
    a constraint, what it begins after and tool calls."""
    if constraint is None:
        return REASONING_MARKS
    marks = TOOL_MARKS if constraint.kind == "tools" else ()
    return (*REASONING_MARKS, *marks, constraint.after)


def _with_format(text: str, tool_format: str) -> str:
    """Return the text of a tools constraint with its format decided."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return text  # the engine says what is wrong with it
    if isinstance(data, dict) and data.get("format", "auto") == "auto":
        return json.dumps({**data, "format": tool_format})
    return text
