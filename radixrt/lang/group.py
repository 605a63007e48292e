"""Forks of a state, handled together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, overload

from radixrt.errors import InvalidArgument
from radixrt.lang.nodes import Expr, expression
from radixrt.lang.source import caller

if TYPE_CHECKING:
    from radixrt.lang.state import ProgramState


class ProgramStateGroup:
    """The states that ``fork`` returned, in order; a sequence.

    ``group += expression`` executes it on every state, ``group += [a, b, …]`` one expression on
    each, ``group += f`` the expression ``f(i)`` on state i. As a context manager it joins at the
    end (``gather_variable``) unless that was done before.
    """

    def __init__(self, states: Sequence[ProgramState], source: ProgramState) -> None:
        self.states = list(states)
        self._source = source
        self._is_joined = False

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self.states)

    @overload
    def __getitem__(self, index: int) -> ProgramState: ...
    @overload
    def __getitem__(self, index: slice) -> list[ProgramState]: ...
    def __getitem__(self, index: int | slice) -> ProgramState | list[ProgramState]:
        return self.states[index]

    def __setitem__(self, index: int, state: ProgramState) -> None:
        # `forks[i] += …` assigns the same state back.
        if self.states[index] is not state:
            raise InvalidArgument("state", state, "the states of a group cannot be exchanged")

    def __iadd__(
        self, other: Expr | str | Sequence[Expr | str] | Callable[[int], Expr | str]
    ) -> ProgramStateGroup:
        where = caller()
        size = len(self.states)
        if isinstance(other, Expr | str):
            expressions = [expression(other)] * size
        elif callable(other):
            expressions = [expression(other(index)) for index in range(size)]
        elif isinstance(other, list | tuple):
            if len(other) != size:
                raise InvalidArgument("expressions", other, f"give one for each of {size} states")
            expressions = [expression(item) for item in other]
        else:
            raise InvalidArgument(
                "expression", other, "append an expression, a list of them, or a function of i"
            )
        for state, item in zip(self.states, expressions, strict=True):
            state.execution.execute(item, where)
        return self

    def join(
        self, mode: Literal["gather_variable", "concate_and_append"] = "gather_variable"
    ) -> None:
        """Wait for all forks, hand their results to the state they came from, and close them.

        ``gather_variable``: each variable that a fork has and the source has not becomes a list of
        the forks' values, in their order. ``concate_and_append``: what each fork has written and
        generated since the fork, roles included, is appended to the source in their order; these
        tokens are computed again, since they now follow others. Variables are gathered as well.

        Raises the first failure of a fork, in their order. Forks can still be read afterwards.
        """
        if mode not in ("gather_variable", "concate_and_append"):
            raise InvalidArgument("mode", mode, "use gather_variable or concate_and_append")
        self._is_joined = True
        where = caller()
        try:
            if mode == "concate_and_append":
                for state in self.states:
                    state.execution.sync()
                for state in self.states:
                    self._source.execution.repeat(state.execution, where)
            gather(self._source, self.states)
        finally:
            self.close()

    def close(self) -> None:
        """Close every fork; what still runs on them is cancelled. Idempotent."""
        for state in self.states:
            state.close()

    def __enter__(self) -> ProgramStateGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None or self._is_joined:
            self.close()
        else:
            self.join()


def gather(source: ProgramState, states: Sequence[ProgramState]) -> None:
    """Set each variable that is new in ``states`` to the list of its values there; waits."""
    known = set(source.variables)
    for state in states:
        state.execution.sync()
    names = dict.fromkeys(name for state in states for name in state.variables if name not in known)
    for name in names:
        having = [state.execution for state in states if name in state]
        source.execution.gather(name, having)
