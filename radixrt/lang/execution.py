"""A program's execution on one branch: its operations, and what carries the rest.

``ProgramState`` is its public face.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from radixrt.errors import (
    Cancelled,
    InvalidArgument,
    RadixError,
)
from radixrt.lang.backend import Backend
from radixrt.lang.body import Body
from radixrt.lang.branch import STREAM_CREDIT, Branch
from radixrt.lang.call import Call
from radixrt.lang.checked import CheckedCall
from radixrt.lang.explain import Explanation, explanation
from radixrt.lang.nodes import Choice, Expr, ExprList, Gen, RoleBegin, RoleEnd, Text, Tools
from radixrt.lang.sampling import SamplingOptions, sampling_options
from radixrt.lang.settling import Settling
from radixrt.lang.source import Where
from radixrt.lang.transcript import (
    CallStep,
    Constant,
    RoleStep,
    TextStep,
    ToolsStep,
    Transcript,
    read_outputs,
)
from radixrt.lang.values import Values
from radixrt.protocol import CacheUse, Constraint, Finished, Generate, Span

_READ_TIMEOUT_S = 60.0


class Execution:
    """The operations of one branch and what came of them.

    ``body`` is the run of the program's code, ``calls`` waits for generations and selections,
    ``values`` reads variables. The branch is closed when this object is gone, so none of them holds
    it.
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
        """``deadline`` is in monotonic seconds and bounds every wait. ``stream`` asks for
        generations in pieces. ``name`` and, for a fork, ``track`` are what traces know it by."""
        self.backend = backend
        self.branch = branch or Branch(backend.client, tenant=tenant, cache=cache)
        self.transcript = transcript or Transcript()
        self.body = Body(self.branch.signal, lambda: backend.is_open, deadline)
        self.calls = Settling(backend.client, self.branch, self.transcript)
        self.values = Values(self.transcript, self.body, self.calls)
        self._defaults = defaults or SamplingOptions()
        self._stream = stream
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
                deadline=self.body.deadline,
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
        given = [deadline for deadline in (own, self.body.deadline) if deadline is not None]
        return min(given, default=None)

    # ------------------------------------------------------------ values

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
        variables = [fork.values.variable(name) for fork in forks]
        values = [fork.values.of(name) for fork in forks]
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
        self.body.wait()
        self.calls.finish_all()

    # ------------------------------------------------------------ the body

    def run_body(
        self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Run a program's body on this thread."""
        try:
            self.body.run(body, args, kwargs)
        finally:
            self._trace_end()

    async def run_coroutine(
        self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Run a program's ``async def`` body in the running event loop."""
        try:
            await self.body.run_coroutine(body, args, kwargs)
        finally:
            self._trace_end()

    def _trace_end(self) -> None:
        tracing, track, error = self.backend.tracing, self._track, self.body.error
        if tracing is not None:
            self.calls.on_settled(lambda: tracing.ended(track, error))


def _remaining(deadline: float | None) -> float | None:
    # A deadline that has passed is the runtime's to report, like any other.
    return None if deadline is None else max(deadline - time.monotonic(), 1e-3)
