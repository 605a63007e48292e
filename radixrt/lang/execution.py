"""A program's execution on one branch: operations go out, results and failures are waited for.

``ProgramState`` is its public face. Every wait here ends: with the result, with the failure, with
the deadline, or with the loss of the connection.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from radixrt.errors import (
    BranchFailed,
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    ProgramError,
    RadixError,
)
from radixrt.lang.backend import Backend
from radixrt.lang.branch import STREAM_CREDIT, Branch
from radixrt.lang.call import Call, Watch, wait_until, wait_until_in_loop
from radixrt.lang.checked import CheckedCall
from radixrt.lang.explain import Explanation, explanation
from radixrt.lang.nodes import Choice, Expr, ExprList, Gen, RoleBegin, RoleEnd, Text, Tools
from radixrt.lang.sampling import SamplingOptions, sampling_options
from radixrt.lang.source import Where
from radixrt.lang.token_view import TokenView
from radixrt.lang.transcript import (
    CallStep,
    Constant,
    RoleStep,
    Scope,
    TextStep,
    ToolsStep,
    Transcript,
    Variable,
    read_outputs,
)
from radixrt.protocol import CacheUse, Constraint, Finished, Generate, Span

_READ_TIMEOUT_S = 60.0


class Execution:
    """The operations of one branch and what came of them.

    ``deadline`` is in monotonic seconds and bounds every wait. ``stream`` asks for generations in
    pieces. The branch is closed when this object is gone.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        branch: Branch | None = None,
        transcript: Transcript | None = None,
        defaults: SamplingOptions | None = None,
        deadline: float | None = None,
        stream: bool = False,
        tenant: str = "",
        cache: CacheUse = "shared",
        name: str = "program",
        track: int | None = None,
    ) -> None:
        """``name`` and, for a fork, ``track`` are what traces know it by."""
        self.backend = backend
        self.branch = branch or Branch(backend.client, tenant=tenant, cache=cache)
        self.transcript = transcript or Transcript()
        self.is_running = False
        self.ret_value: Any = None
        self.body_error: BaseException | None = None
        self._defaults = defaults or SamplingOptions()
        self.deadline = deadline
        self._stream = stream
        self._body_thread: int | None = None
        self._was_raised = False
        self._forks: weakref.WeakSet[Execution] = weakref.WeakSet()
        self._spans: tuple[int, tuple[Span, ...]] | None = None
        self._track = 0
        if backend.tracing is not None:
            self._track = backend.tracing.began(name) if track is None else track
        weakref.finalize(self, self.branch.retire).atexit = False

    # ------------------------------------------------------------ operations

    def execute(self, node: Expr, where: Where) -> None:
        """Send an expression's operations, or queue them until something needs them."""
        transcript = self.transcript
        match node:
            case Text():
                if node.text:
                    self._append(TextStep(node.text, where))
            case ExprList():
                for item in node.items:
                    self.execute(item, where)
            case RoleBegin():
                self._append(transcript.begin_role(node.role, where))
            case RoleEnd():
                self._append(transcript.end_role(node.role, where))
            case Tools():
                self._append(ToolsStep(node.part, where))
            case Gen():
                self._generate(node)
            case Choice():
                self._select(node)
            case _:
                raise InvalidArgument("expression", node, "use radixrt's own expressions")

    def fork(self, size: int) -> list[Execution]:
        """Return ``size`` copies; one message, nothing is waited for."""
        if self.branch.is_closed:
            raise Cancelled("the program's state was closed and cannot be forked")
        tracing = self.backend.tracing
        forks = [
            Execution(
                self.backend,
                branch=branch,
                transcript=self.transcript.fork(),
                defaults=self._defaults,
                deadline=self.deadline,
                stream=self._stream,
                track=None if tracing is None else tracing.forked(self._track),
            )
            for branch in self.branch.fork(size)
        ]
        self._forks.update(forks)
        return forks

    def close(self, error: RadixError | None = None) -> None:
        """Cancel what still runs and end the branch at the runtime. Idempotent."""
        self.branch.close(error)

    def abandon(self, error: RadixError | None = None) -> None:
        """Close this branch and all that were forked from it: nobody will read them.

        They may be alive all the same, in the frames of an exception that is on its way.
        """
        for fork in list(self._forks):
            fork.abandon(error)
        self.close(error)

    def _append(self, step: TextStep | RoleStep | ToolsStep) -> None:
        self.branch.append(step.part)
        self.transcript.steps.append(step)
        self.branch.signal.notify()

    def _generate(self, node: Gen) -> None:
        options = node.sampling.over(self._defaults)
        if node.dtype is not None and node.dtype.stop:
            stop = (*(options.stop or ()), *node.dtype.stop)
            options = sampling_options(stop=stop).over(options)
        deadline = self._earliest(node.deadline)
        call: Call
        if node.reading is not None and node.reading.needs_check:
            call = self._generate_checked(node, options, deadline)
        else:
            call = self.branch.generate(
                options.resolve(),
                node.constraint,
                # The first text of a call is seen only when it is sent before the last.
                stream=self._stream or self.backend.tracing is not None,
                deadline_s=_remaining(deadline),
                site=node.where,
                heal=node.heal,
                trace=node.trace,
            )
        self._register(node.name, CallStep(node, call, options, deadline))

    def _generate_checked(
        self, node: Gen, options: SamplingOptions, deadline: float | None
    ) -> CheckedCall:
        reading, constraint, sampling = node.reading, node.constraint, options.resolve()
        stream = self._stream
        assert reading is not None
        assert constraint is not None

        def message(constraint: Constraint) -> Generate:
            return Generate(
                0,
                0,
                sampling,
                constraint,
                stream=stream,
                credit=STREAM_CREDIT if stream else 0,
                deadline_s=_remaining(deadline),
                heal=node.heal,
                trace=node.trace,
            )

        def check(result: Finished) -> list[Any]:
            return read_outputs(reading, result)

        return self.branch.generate_checked(
            message, constraint, check, self.backend.checks, deadline
        )

    def _select(self, node: Choice) -> None:
        deadline = self._earliest(node.deadline)
        call = self.branch.select(
            node.options,
            node.method.wire,
            deadline_s=_remaining(deadline),
            site=node.where,
            max_tokens=node.max_tokens,
        )
        self._register(node.name, CallStep(node, call, self._defaults, deadline))

    def _register(self, name: str | None, step: CallStep) -> None:
        self.transcript.steps.append(step)
        if name is not None:
            self.transcript.variables[name] = step
        if self.backend.tracing is not None:
            self.backend.tracing.sent(self._track, step.node, step.call)
        self.branch.signal.notify()

    def _earliest(self, timeout_s: float | None) -> float | None:
        own = None if timeout_s is None else time.monotonic() + timeout_s
        given = [deadline for deadline in (own, self.deadline) if deadline is not None]
        return min(given, default=None)

    # ------------------------------------------------------------ values

    def value(self, name: str) -> Any:
        """Return a variable's value; waits for it and raises the failure it suffered from."""
        variable = self.variable(name)
        if isinstance(variable, Constant):
            return variable.value
        if isinstance(variable, CallStep):
            self.finish(variable)
            try:
                return variable.value
            except RadixError as error:
                raise ProgramError(variable.node.op, str(variable.where), error) from error
        if variable.end is None:
            raise InvalidArgument("name", name, "its var_scope is still open")
        self._finish_all(variable.end)
        return self.transcript.text(variable.begin, variable.end)

    def raw(self, name: str) -> Any:
        """Return the text that a variable's value was read from."""
        variable = self.variable(name)
        if isinstance(variable, CallStep):
            self.finish(variable)
            return variable.raw
        if isinstance(variable, Constant) and variable.raw is not None:
            return variable.raw
        value = self.value(name)
        if not isinstance(value, str):
            raise InvalidArgument("name", name, "it was set by the program, not generated")
        return value

    def token_view(self, name: str) -> TokenView:
        """Return how the tokens of a generated variable came about."""
        variable = self.variable(name)
        if not isinstance(variable, CallStep) or not isinstance(variable.node, Gen):
            raise InvalidArgument("name", name, "it was not generated")
        if not variable.node.trace:
            raise InvalidArgument("name", name, "nothing was kept of it; give gen trace=True")
        self.finish(variable)
        result = variable.call.result
        assert isinstance(result, Finished)
        return TokenView(result.outputs[0].trace)

    async def value_in_loop(self, name: str) -> Any:
        """``value`` without blocking the running event loop."""
        variable = self.transcript.variables.get(name)
        if isinstance(variable, CallStep):
            await self._wait_in_loop(variable)
        elif isinstance(variable, Scope):
            for step in self._calls(variable.end):
                await self._wait_in_loop(step)
        return self.value(name)

    def meta_info(self, name: str) -> Any:
        """Return the meta info of a generated variable; waits for it."""
        variable = self.variable(name)
        if isinstance(variable, CallStep):
            self.finish(variable)
            return variable.meta_info
        if isinstance(variable, Constant) and variable.meta_info is not None:
            return variable.meta_info
        raise InvalidArgument("name", name, "it was not generated, so it has no meta info")

    def usage(self) -> dict[str, int]:
        """Return the token counts of this branch's own calls that ended well, summed."""
        total: dict[str, int] = {}
        for step in self.transcript.steps[self.transcript.fork_point :]:
            if isinstance(step, CallStep) and step.call.is_done and step.call.error is None:
                for key, count in step.usage.items():
                    total[key] = total.get(key, 0) + count
        return total

    def variable(self, name: str) -> Variable:
        variables = self.transcript.variables
        if name not in variables:
            self.await_body(or_until=lambda: name in variables)
        if name not in variables:
            known = ", ".join(variables) or "none"
            raise InvalidArgument("name", name, f"no such variable; known: {known}")
        return variables[name]

    def spans(self) -> tuple[Span, ...]:
        """Return the branch's text as the runtime renders it.

        A branch that was closed is written out again on a scratch branch, which computes nothing.
        """
        length = len(self.transcript.steps)
        if self._spans is None or self._spans[0] != length:
            client = self.backend.client
            if self.branch.is_closed:
                scratch = Branch(client)
                for step in self.transcript.steps:
                    scratch.append(step.part)
                reply = client.reply(scratch.read(), _READ_TIMEOUT_S)
                scratch.close()
            else:
                reply = client.reply(self.branch.read(), _READ_TIMEOUT_S)
            self._spans = length, reply.spans
        return self._spans[1]

    def explain(self) -> Explanation:
        """Return what became of the prompts of this branch's own latest calls; waits for them."""
        self.sync()
        if self.branch.is_closed:
            raise Cancelled("the program's state was closed, and its branch with it")
        reply = self.backend.client.reply(self.branch.explain(), _READ_TIMEOUT_S)
        return explanation(reply.data["calls"])

    # ------------------------------------------------------------ joining

    def gather(self, name: str, forks: Sequence[Execution]) -> None:
        """Set a variable to the list of its values in ``forks``, with their meta infos."""
        variables = [fork.variable(name) for fork in forks]
        values = [fork.value(name) for fork in forks]
        infos = [
            variable.meta_info if isinstance(variable, CallStep | Constant) else None
            for variable in variables
        ]
        known = None if all(info is None for info in infos) else infos
        raws = [
            variable.raw if isinstance(variable, CallStep | Constant) else None
            for variable in variables
        ]
        self.transcript.variables[name] = Constant(
            values, known, None if all(raw is None for raw in raws) else raws
        )

    def repeat(self, fork: Execution, where: Where) -> None:
        """Append what a finished fork has done since it was forked."""
        for step in fork.transcript.steps[fork.transcript.fork_point :]:
            match step:
                case RoleStep(begins=True):
                    self._append(self.transcript.begin_role(step.role, where))
                case RoleStep():
                    self._append(self.transcript.end_role(step.role, where))
                case ToolsStep():
                    self._append(step)
                case _:
                    self._append(TextStep(step.text, where))

    # ------------------------------------------------------------ waiting and failing

    def sync(self) -> None:
        """Wait for the body and for every call; raises the first failure."""
        self.await_body()
        self._finish_all(None)
        if self.branch.refusal is not None:
            raise self._raised(self._first_failure())

    def finish(self, step: CallStep) -> None:
        """Wait for a call; raises the branch's first failure if it failed."""
        self._wait(step)
        if step.call.error is not None:
            raise self._raised(self._first_failure(step))

    def settle(self) -> None:
        """Wait for every call; raises the first failure unless it was raised to the body."""
        for step in self._calls():
            self._wait(step)
        self.raise_unmet_failure()

    async def settle_in_loop(self) -> None:
        """``settle`` for a running event loop."""
        for step in self._calls():
            await self._wait_in_loop(step)
        self.raise_unmet_failure()

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, on any thread, as soon as every call has ended."""
        running = [step.call for step in self._calls() if not step.call.is_done]
        Watch(self.branch.signal, running, callback).begin()

    def expire(self) -> None:
        """End the calls whose deadline has passed."""
        now = time.monotonic()
        for step in self._calls():
            if not step.call.is_done and step.deadline is not None and step.deadline <= now:
                self._expire(step)

    def raise_unmet_failure(self) -> None:
        """Raise the first failure unless it was raised before, so that the body has handled it."""
        if not self._was_raised:
            failed = any(step.call.error is not None for step in self._calls())
            if failed or self.branch.refusal is not None:
                raise self._raised(self._first_failure())

    def _calls(self, end: int | None = None) -> list[CallStep]:
        return [step for step in self.transcript.steps[:end] if isinstance(step, CallStep)]

    def _finish_all(self, end: int | None) -> None:
        for step in self._calls(end):
            self.finish(step)

    def _wait(self, step: CallStep) -> None:
        if not step.call.is_done and not self.backend.client.wait(step.call, step.deadline):
            self._expire(step)

    async def _wait_in_loop(self, step: CallStep) -> None:
        if not step.call.is_done and not await wait_until_in_loop(
            step.call.signal,
            lambda: step.call.is_done,
            deadline=step.deadline,
            is_connected=lambda: self.backend.is_open,
        ):
            self._expire(step)

    def _expire(self, step: CallStep) -> None:
        error = DeadlineExceeded("it did not end within its deadline")
        self.backend.client.cancel([step.call], error)

    def _first_failure(self, until: CallStep | None = None) -> ProgramError:
        """The failure that came first, of all steps or of those up to one that has failed."""
        failed: CallStep | None = None
        for step in self._calls():
            if step.call.error is not None:
                failed = step
                if not isinstance(step.call.error, BranchFailed):
                    break
            if step is until:
                break
        refusal = self.branch.refusal
        if refusal is not None and (failed is None or isinstance(failed.call.error, BranchFailed)):
            written = [step for step in self.transcript.steps if not isinstance(step, CallStep)]
            where = str(written[-1].where) if written else "its fork"
            return ProgramError("append", where, refusal)
        assert failed is not None
        assert failed.call.error is not None
        return ProgramError(failed.node.op, str(failed.where), failed.call.error)

    def _raised(self, error: ProgramError) -> ProgramError:
        self._was_raised = True
        return error

    # ------------------------------------------------------------ the body

    def run_body(
        self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Run a program's body on this thread and keep what it returns or raises."""
        self._body_thread = threading.get_ident()
        self.is_running = True
        try:
            self.ret_value = body(*args, **kwargs)
        except BaseException as error:
            self.body_error = error
            raise
        finally:
            self._body_ended()

    async def run_coroutine(
        self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Run a program's ``async def`` body in the running event loop."""
        self._body_thread = threading.get_ident()
        self.is_running = True
        try:
            self.ret_value = await body(*args, **kwargs)
        except BaseException as error:
            self.body_error = error
            raise
        finally:
            self._body_ended()

    def await_body(self, or_until: Callable[[], bool] = lambda: False) -> None:
        """Wait until a body on another thread has ended; raises what it raised."""
        if self.is_running and threading.get_ident() != self._body_thread:
            self.wait_for_change(lambda: not self.is_running or or_until())
        if self.body_error is not None and not self.is_running and not or_until():
            raise self.body_error

    def wait_for_change(self, predicate: Callable[[], bool]) -> None:
        """Wait until ``predicate()`` holds; it is looked at when this branch makes progress."""
        if not wait_until(
            self.branch.signal,
            predicate,
            deadline=self.deadline,
            is_connected=lambda: self.backend.is_open,
        ):
            raise DeadlineExceeded("the program did not end within its timeout")

    def _body_ended(self) -> None:
        self.is_running = False
        self.branch.signal.notify()
        tracing, track, error = self.backend.tracing, self._track, self.body_error
        if tracing is not None:
            self.on_settled(lambda: tracing.ended(track, error))


def _remaining(deadline: float | None) -> float | None:
    # A deadline that has passed is the runtime's to report, like any other.
    return None if deadline is None else max(deadline - time.monotonic(), 1e-3)
