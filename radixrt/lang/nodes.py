"""The expressions a program is made of.

``"Q: " + gen("answer") + "\\n"`` is an ``ExprList`` of three expressions. Expressions are
immutable values: creating one does nothing, ``s += expression`` executes it on a state, and one
expression may be used with many states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from radixrt.errors import InvalidArgument
from radixrt.lang.choices import ChoicesMethod
from radixrt.lang.reading import Reading, ResultType
from radixrt.lang.sampling import SamplingOptions, check_text
from radixrt.lang.source import Where
from radixrt.lang.typed import Typed
from radixrt.protocol import Constraint, Part


class Expr:
    """Base class of expressions; ``+`` joins expressions and strings in order."""

    __slots__ = ()

    def __add__(self, other: Expr | str) -> ExprList:
        return ExprList((*_items(self), *_items(other)))

    def __radd__(self, other: str) -> ExprList:
        return ExprList((*_items(other), *_items(self)))

    def __format__(self, format_spec: str) -> str:
        # Else its repr would be in the prompt, and nobody would notice.
        raise InvalidArgument("f-string", self.op, f'write s += "…" + {self.op} + "…" instead')

    @property
    def op(self) -> str:
        """The operation as errors name it."""
        return type(self).__name__


@dataclass(frozen=True, slots=True)
class Text(Expr):
    """Text that the program writes."""

    text: str

    @property
    def op(self) -> str:
        return "append"


@dataclass(frozen=True, slots=True)
class ExprList(Expr):
    """Expressions that are executed in order."""

    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class RoleBegin(Expr):
    """The start of a chat message."""

    role: str

    @property
    def op(self) -> str:
        return f"{self.role}_begin"


@dataclass(frozen=True, slots=True)
class RoleEnd(Expr):
    """The end of a chat message."""

    role: str

    @property
    def op(self) -> str:
        return f"{self.role}_end"


@dataclass(frozen=True, slots=True)
class Tools(Expr):
    """The definitions of tools, for the model's chat template to write where it puts them."""

    part: Part

    @property
    def op(self) -> str:
        return "tools"


@dataclass(frozen=True, slots=True)
class Gen(Expr):
    """A generation. ``deadline`` is in seconds from when it is sent."""

    name: str | None
    sampling: SamplingOptions
    where: Where = field(compare=False)
    constraint: Constraint | None = None
    dtype: Typed | None = None
    deadline: float | None = None
    reading: Reading | None = None
    heal: bool = False
    trace: bool = False

    @property
    def op(self) -> str:
        return f"gen({_quoted(self.name)})"


@dataclass(frozen=True, slots=True)
class Choice(Expr):
    """A selection of one of ``options`` by likelihood. ``readings`` has the types among them."""

    name: str | None
    options: tuple[str | Constraint, ...]
    method: ChoicesMethod
    where: Where = field(compare=False)
    deadline: float | None = None
    max_tokens: int = 64
    readings: Mapping[int, ResultType] = field(default_factory=dict)

    @property
    def op(self) -> str:
        return f"select({_quoted(self.name)})"


def expression(value: object) -> Expr:
    """Return what ``s += value`` executes. Raises ``InvalidArgument`` unless it is a string or an
    expression."""
    if isinstance(value, str):
        return Text(check_text("text", value))
    if isinstance(value, Expr):
        return value
    raise InvalidArgument(
        "expression", value, "append a string or an expression (gen, select, user, …)"
    )


def _items(value: object) -> tuple[Expr, ...]:
    item = expression(value)
    return item.items if isinstance(item, ExprList) else (item,)


def _quoted(name: str | None) -> str:
    return "" if name is None else f'"{name}"'
