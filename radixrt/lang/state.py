"""``ProgramState``: what a program's body works on, and what ``run`` returns."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

from radixrt.errors import InvalidArgument, RadixError
from radixrt.lang import growing, notebook, streaming
from radixrt.lang.execution import Execution
from radixrt.lang.explain import Explanation
from radixrt.lang.group import ProgramStateGroup, gather
from radixrt.lang.leases import Lease
from radixrt.lang.nodes import Expr, ExprList, RoleBegin, RoleEnd, expression
from radixrt.lang.roles import message
from radixrt.lang.source import caller
from radixrt.lang.token_view import TokenView
from radixrt.lang.transcript import Constant, Scope


class ProgramState:
    """The state of a program on one branch: its text, its variables, its calls.

    ``s += expression`` executes an expression. Nothing waits until a value is read: ``s[name]``,
    ``get_var``, ``get_meta_info``, ``text``, ``messages``, ``sync``. Reading raises
    ``ProgramError`` when an operation it needs has failed: the branch's first failure, with its
    source line. Values from before the failure can still be read.

    The branch stays open at the runtime while this object lives, so a state that ``run`` returned
    can be continued. ``close`` ends it earlier; what was done can be read afterwards all the same.
    A state is for one thread at a time; its forks may be used on other threads.
    """

    def __init__(self, execution: Execution) -> None:
        """Programs do not call this: ``run`` and ``fork`` do."""
        self.execution = execution
        self._copied_from: ProgramState | None = None

    def __iadd__(self, other: Expr | str) -> ProgramState:
        """Execute an expression, or append text. Does not wait for its result."""
        self.execution.execute(expression(other), caller())
        return self

    if not TYPE_CHECKING:  # for people; a type checker finds both without them

        def __add__(self, other: object) -> NoReturn:
            raise InvalidArgument("s + …", other, "write s += …; to go on in two ways, fork first")

        def __getattr__(self, name: str) -> NoReturn:
            is_variable = "execution" in self.__dict__ and name in self
            hint = f"; its variable is s[{name!r}]" if is_variable else ""
            raise AttributeError(f"'ProgramState' has no attribute {name!r}{hint}")

    # ------------------------------------------------------------ chat roles and scopes

    @overload
    def system(self, expr: None = None) -> _RoleScope: ...
    @overload
    def system(self, expr: Expr | str) -> ExprList: ...
    def system(self, expr: Expr | str | None = None) -> _RoleScope | ExprList:
        """Append a system message; without ``expr``, use as ``with s.system():``."""
        return self._message("system", expr)

    @overload
    def user(self, expr: None = None) -> _RoleScope: ...
    @overload
    def user(self, expr: Expr | str) -> ExprList: ...
    def user(self, expr: Expr | str | None = None) -> _RoleScope | ExprList:
        """Append a user message; without ``expr``, use as ``with s.user():``."""
        return self._message("user", expr)

    @overload
    def assistant(self, expr: None = None) -> _RoleScope: ...
    @overload
    def assistant(self, expr: Expr | str) -> ExprList: ...
    def assistant(self, expr: Expr | str | None = None) -> _RoleScope | ExprList:
        """Append an assistant message; without ``expr``, use as ``with s.assistant():``."""
        return self._message("assistant", expr)

    def _message(self, role: str, expr: Expr | str | None) -> _RoleScope | ExprList:
        if expr is None:
            return _RoleScope(self, role)
        whole = message(role, expr)
        self.execution.execute(whole, caller())
        return whole

    def var_scope(self, name: str) -> _VarScope:
        """Return a context whose text becomes variable ``name`` when it is left.

        The text is what the program and the model wrote, without what a chat template adds.
        """
        return _VarScope(self, name)

    # ------------------------------------------------------------ branching

    def fork(self, size: int = 1, position_ids_offset: None = None) -> ProgramStateGroup:
        """Return ``size`` copies of this state as it is now, which share its prefix.

        Nothing is waited for and nothing is computed again, also when generations of this state
        are still running. A fork's failure is raised where the fork is read or joined; a fork that
        nobody holds any more is cancelled. ``position_ids_offset`` is there for SGLang's signature;
        leave it None.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidArgument("size", size, "use 1 or more")
        if position_ids_offset is not None:
            raise InvalidArgument("position_ids_offset", position_ids_offset, "leave it out")
        return ProgramStateGroup([ProgramState(e) for e in self.execution.fork(size)], self)

    def copy(self) -> ProgramState:
        """Return one copy of this state.

        ``with s.copy() as c:`` hands the variables that are new in it back to ``s`` at the end, as
        ``join`` does, and closes it.
        """
        copied = self.fork(1)[0]
        copied._copied_from = self
        return copied

    def __enter__(self) -> ProgramState:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None and self._copied_from is not None:
                gather(self._copied_from, [self])
        finally:
            self.close()

    def close(self) -> None:
        """End the branch at the runtime and cancel what still runs on it. Idempotent."""
        self.execution.close()

    # ------------------------------------------------------------ the cache

    def lease(self, ttl: float = 300.0, priority: int = 1) -> Lease:
        """Keep what this branch has cached, and will have, for ``ttl`` seconds of disuse before
        that of others; ``priority`` 0 to 3 ranks such wishes. Use as ``with s.lease(ttl=60):``, or
        call ``release()`` on what is returned. A wish decays and never keeps others from running.
        """
        return Lease(self.execution, ttl, priority)

    def release(self) -> None:
        """Let go of what this branch alone has cached: it is evicted first. The program may go on
        all the same, and computes again what is gone."""
        self.execution.branch.let_go()

    @overload
    def explain(self) -> Explanation: ...
    @overload
    def explain(self, name: str) -> TokenView: ...
    def explain(self, name: str | None = None) -> Explanation | TokenView:
        """Without a name: return what became of every prompt token of this branch's latest calls,
        the cache that served it, or that it was computed and why.

        With the name of a generated variable: return how each of its tokens came about; the
        generation needs ``trace=True``. Both wait for the calls, print as text, and a view of
        tokens shows itself in notebooks.
        """
        return self.execution.explain() if name is None else self.execution.values.token_view(name)

    # ------------------------------------------------------------ reading

    @property
    def ret_value(self) -> Any:
        """What the body returned; waits for it."""
        self.execution.body.wait()
        return self.execution.body.value

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables so far; does not wait."""
        return tuple(self.execution.transcript.variables)

    def __getitem__(self, name: str) -> Any:
        return self.execution.values.of(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_var(name, value)

    def __contains__(self, name: object) -> bool:
        return name in self.execution.transcript.variables

    def get_var(self, name: str) -> Any:
        """Return a variable; waits for its generation.

        Raises ``ProgramError`` when it failed, ``InvalidArgument`` (which names the known ones)
        when there is no such variable.
        """
        return self.execution.values.of(name)

    def raw(self, name: str) -> Any:
        """Return the text that a variable's value was read from; waits for its generation.

        A list of texts of ``n > 1`` outputs and of gathered forks.
        """
        return self.execution.values.raw(name)

    async def aget(self, name: str) -> Any:
        """Return a variable like ``get_var``, without blocking the running event loop."""
        return await self.execution.values.in_loop(name)

    def set_var(self, name: str, value: Any) -> None:
        """Set a variable. It appends nothing to the text."""
        self.execution.transcript.variables[name] = Constant(value)

    def get_meta_info(self, name: str) -> Any:
        """Return what is known about the generation or selection of a variable; waits for it.

        A dict with prompt_tokens, cached_tokens, computed_tokens, evicted_tokens,
        completion_tokens, forced_tokens and, of a generation, finish_reason and the logprobs asked
        for (input_token_logprobs, output_token_logprobs, output_top_logprobs; entries are (logprob,
        token id, text)); of a selection normalized_prompt_logprobs, input_token_logprobs and the
        scores. Of ``n > 1`` outputs, and of gathered forks, a list of such dicts.

        Under a constraint also attempts, warnings, enforcement (what became of each keyword of the
        schema) and fields: for each field by JSON pointer its logprob, num_tokens, confidence and
        text, with ``return_logprob``, ``fields`` or ``trace``.
        """
        return self.execution.values.meta_info(name)

    def meta(self, name: str) -> Any:
        """``get_meta_info``."""
        return self.execution.values.meta_info(name)

    def usage(self) -> dict[str, int]:
        """Return the token counts of the calls this state made itself, summed; waits for them."""
        self.sync()
        return self.execution.values.usage()

    def text(self) -> str:
        """Return the whole text, with what the chat template adds; waits for everything."""
        self.sync()
        if self.execution.transcript.has_roles:
            return "".join(span.text for span in self.execution.spans())
        return self.execution.transcript.text()

    def messages(self) -> list[dict[str, str]]:
        """Return the complete chat messages in the OpenAI form; waits for everything."""
        self.sync()
        return self.execution.transcript.messages()

    def sync(self) -> None:
        """Wait for everything; raises the first failure."""
        self.execution.sync()

    def error(self) -> BaseException | None:
        """Wait for everything; return the first failure, or what the body raised, or None."""
        try:
            self.sync()
        except RadixError as error:
            return error
        except BaseException as error:
            if error is not self.execution.body.error:  # Ctrl-C while waiting
                raise
            return error
        return None

    def text_iter(self, var_name: str | None = None) -> Generator[str, None, None]:
        """Yield the text, or a variable's, piece by piece as it comes.

        Pieces of a generation need ``run(..., stream=True)``; otherwise it comes whole. Of chat
        messages it yields the contents. Closing the iterator before its end cancels what still
        runs on this branch and closes it.
        """
        return streaming.text_iter(self.execution, var_name)

    @overload
    def text_async_iter(
        self, var_name: str | None = None, return_meta_data: Literal[False] = False
    ) -> AsyncGenerator[str, None]: ...
    @overload
    def text_async_iter(
        self, var_name: str | None = None, *, return_meta_data: Literal[True]
    ) -> AsyncGenerator[tuple[str, dict[str, Any]], None]: ...
    def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncGenerator[Any, None]:
        """``text_iter`` for a running event loop; holds no thread.

        With ``return_meta_data`` it yields pairs of text and meta info. The last pair of a
        generation has its whole meta info, and may have no text.
        """
        if return_meta_data:
            return streaming.text_and_meta_in_loop(self.execution, var_name)
        return streaming.text_in_loop(self.execution, var_name)

    def partial_iter(self, name: str) -> Generator[Any, None, None]:
        """Yield the value of a variable with a type or a schema while it is generated.

        What is yielded is one ``Partial`` that has grown: its complete fields have their types, and
        are marked. A value that a validator refuses begins anew, as another ``Partial``. The last
        one is complete; then ``s[name]`` is the instance. Growing needs ``run(..., stream=True)``.
        Closing the iterator before its end cancels what still runs and closes the branch.
        """
        return growing.partial_iter(self.execution, name)

    def partial_async_iter(self, name: str) -> AsyncGenerator[Any, None]:
        """``partial_iter`` for a running event loop; holds no thread."""
        return growing.partial_in_loop(self.execution, name)

    def __repr__(self) -> str:
        execution = self.execution
        condition = (
            "running"
            if execution.body.is_running
            else "closed"
            if execution.branch.is_closed
            else "open"
        )
        names = ", ".join(self.variables) or "none"
        steps = len(execution.transcript.steps)
        return f"<ProgramState {condition}, {steps} steps, variables: {names}>"

    def _repr_html_(self) -> str:
        return notebook.html(self.execution)


class _RoleScope:
    """``with s.user():``; the message stays open when the body of the ``with`` raises."""

    def __init__(self, state: ProgramState, role: str) -> None:
        self._state = state
        self._role = role

    def __enter__(self) -> None:
        self._state.execution.execute(RoleBegin(self._role), caller())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._state.execution.execute(RoleEnd(self._role), caller())


class _VarScope:
    """``with s.var_scope(name):``."""

    def __init__(self, state: ProgramState, name: str) -> None:
        self._transcript = state.execution.transcript
        self._scope = Scope(0)
        self._name = name

    def __enter__(self) -> None:
        self._scope = Scope(len(self._transcript.steps))
        self._transcript.variables[self._name] = self._scope

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scope.end = len(self._transcript.steps)
