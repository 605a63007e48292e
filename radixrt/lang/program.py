"""Programs: a Python function over a state, and the ways to run it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, get_args, overload

from radixrt.errors import InvalidArgument
from radixrt.lang.backend import Backend, default
from radixrt.lang.batch import Batch, Row
from radixrt.lang.batch_report import BatchReport
from radixrt.lang.execution import Execution
from radixrt.lang.journal import FinishedRow
from radixrt.lang.sampling import SAMPLING_NAMES, SamplingOptions, sampling_options
from radixrt.lang.state import ProgramState
from radixrt.protocol import CacheUse

CACHE_NAMES = frozenset(("tenant", "cache"))
"""Keywords that ``run`` takes to choose the cache."""

Result = ProgramState | FinishedRow | Exception
"""A row's result: its state, what a journal kept of it, or (``on_error="keep"``) its error."""


class Function:
    """A program. ``run``, ``arun`` and ``run_batch`` take the body's arguments and, as defaults for
    its generations, the sampling options of ``gen`` (``max_new_tokens`` is ``max_tokens``).
    ``tenant="…"`` gives a program a cache of its own with that of the tenant's others, and
    ``cache="private"`` one that only it and its forks use; with ``"off"`` nothing is reused.

    A keyword that the body itself takes goes to the body.
    """

    def __init__(self, body: Callable[..., Any], bound: Mapping[str, Any] | None = None) -> None:
        if not callable(body):
            raise InvalidArgument("body", body, "decorate a function")
        parameters = list(inspect.signature(body).parameters.values())
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise InvalidArgument(
                "body", body, "its first parameter must be the state: def f(s, …)"
            )
        self._body = body
        self._bound = dict(bound or {})
        self._parameters = parameters[1:]
        functools.update_wrapper(self, body)

    @property
    def arg_names(self) -> list[str]:
        """The names of the body's arguments, without the state."""
        return [p.name for p in self._parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]

    def bind(self, **arguments: Any) -> Function:
        """Return the program with some arguments given; a call may still override them."""
        self._check_names(arguments)
        return Function(self._body, {**self._bound, **arguments})

    def __call__(self, *args: Any, **options: Any) -> ProgramState:
        """``run``."""
        return self.run(*args, **options)

    def run(
        self,
        *args: Any,
        backend: Backend | None = None,
        stream: bool = False,
        timeout: float | None = None,
        **options: Any,
    ) -> ProgramState:
        """Run the program; return its state once everything it asked for is there.

        ``options`` are arguments of the body and sampling options. ``timeout`` bounds all of it, in
        seconds, but not what the state is continued with later. With ``stream`` the body runs on a
        thread of its own, the state is returned at once and ``text_iter`` yields text as it comes;
        reading anything else waits.

        Raises ``ProgramError`` for the first failed operation (unless the body met it and went
        on), and what the body raises as it is; the branch is closed then, its calls cancelled, as
        they are by Ctrl-C.
        """
        arguments, execution = self._start(backend, options, timeout, stream)
        state = ProgramState(execution)
        if stream:
            thread = threading.Thread(
                target=_run_unattended,
                args=(self, state, args, arguments),
                name=f"radixrt-{self._body.__name__}",
                daemon=True,
            )
            execution.body.is_running = True
            thread.start()
            return state
        with _abandoned_on_error(execution):
            self.execute(state, args, arguments)
            execution.calls.settle()
            execution.body.deadline = None
        return state

    async def arun(
        self,
        *args: Any,
        backend: Backend | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> ProgramState:
        """Run the program like ``run``, as a coroutine.

        An ``async def`` body runs in the event loop (read values with ``await s.aget(name)``), any
        other body on a thread of the backend's, which it holds only until it returns. Cancelling
        the coroutine cancels the program's calls.
        """
        import asyncio  # late: most programs need no event loop

        arguments, execution = self._start(backend, options, timeout, stream=False)
        state = ProgramState(execution)
        with _abandoned_on_error(execution):
            if inspect.iscoroutinefunction(self._body):
                await execution.run_coroutine(self._body, (state, *args), arguments)
            else:
                loop = asyncio.get_running_loop()
                run = functools.partial(self.execute, state, args, arguments)
                await loop.run_in_executor(execution.backend.bodies, run)
            await execution.calls.settle_in_loop()
            execution.body.deadline = None
        return state

    @overload
    def run_batch(
        self,
        batch_kwargs: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        backend: Backend | None = None,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        generator_style: Literal[False] = False,
        max_in_flight: int | None = None,
        on_error: Literal["raise", "keep"] = "raise",
        journal: str | os.PathLike[str] | None = None,
        resume: bool = False,
        report: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        **sampling: Any,
    ) -> list[Result]: ...
    @overload
    def run_batch(
        self,
        batch_kwargs: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        backend: Backend | None = None,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        generator_style: Literal[True],
        max_in_flight: int | None = None,
        on_error: Literal["raise", "keep"] = "raise",
        journal: str | os.PathLike[str] | None = None,
        resume: bool = False,
        report: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        **sampling: Any,
    ) -> Iterator[Result]: ...
    def run_batch(
        self,
        batch_kwargs: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        backend: Backend | None = None,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        max_in_flight: int | None = None,
        on_error: Literal["raise", "keep"] = "raise",
        journal: str | os.PathLike[str] | None = None,
        resume: bool = False,
        report: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        **sampling: Any,
    ) -> list[Result] | Iterator[Result]:
        """Run the program once a row; return the rows' states in the rows' order.

        A row is a mapping of arguments, or a sequence of them in the body's order. Bodies run on at
        most ``num_threads`` threads ("auto": 64). A body that only sends operations holds its
        thread for moments; rows whose calls are under way hold none. At most ``max_in_flight`` rows
        are under way (by default 256, or ``num_threads`` when that is given). ``timeout`` bounds
        each row, in seconds.

        ``on_error="raise"`` raises the error of the first row that fails, in their order, and
        cancels the rest; ``"keep"`` makes a row's error its result. ``generator_style`` returns an
        iterator that yields results in order as rows finish; closing it cancels the rest.

        ``journal`` names a file that gets one JSON line for each finished row. With ``resume``,
        rows that are in it are not run: their results are ``FinishedRow``s. Rows that failed are
        run again. Arguments have to be JSON values for that; return values and variables that have
        a type (dataclasses, pydantic models, …) are kept as their JSON.

        ``report`` names an HTML file that gets what became of it all: tokens by source, latencies,
        throughput, the slowest rows and the failures with their arguments.
        """
        rows = [self._arguments(index, row) for index, row in enumerate(batch_kwargs)]
        name = self._body.__name__
        batch = Batch(
            self._row_starter(backend, sampling, timeout),
            rows,
            num_threads=num_threads,
            max_in_flight=max_in_flight,
            keep_errors=_keeps_errors(on_error),
            journal=journal,
            resume=resume,
            progress=name if progress_bar else None,
            run_ahead=generator_style,
            report=None if report is None else BatchReport(report, name, rows),
        )
        results = batch.results()
        return results if generator_style else list(results)

    # ------------------------------------------------------------ inside

    def execute(
        self, state: ProgramState, args: tuple[Any, ...], arguments: Mapping[str, Any]
    ) -> None:
        """Run the body on this thread, also one that is ``async def``."""
        execution = state.execution
        if not inspect.iscoroutinefunction(self._body):
            execution.run_body(self._body, (state, *args), arguments)
            return
        import asyncio

        run = functools.partial(
            asyncio.run, execution.run_coroutine(self._body, (state, *args), arguments)
        )
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            run()
        else:  # a thread has at most one event loop, and this one's is running
            _on_thread(run)

    def _start(
        self,
        backend: Backend | None,
        options: dict[str, Any],
        timeout: float | None,
        stream: bool,
    ) -> tuple[dict[str, Any], Execution]:
        own = set(self.arg_names)
        given = {k: v for k, v in options.items() if k in SAMPLING_NAMES and k not in own}
        caching = {k: v for k, v in options.items() if k in CACHE_NAMES and k not in own}
        arguments = {k: v for k, v in options.items() if k not in given and k not in caching}
        self._check_names(arguments, *SAMPLING_NAMES, *CACHE_NAMES, "backend", "timeout", "stream")
        execution = Execution(
            default.choose(backend),
            defaults=sampling_options(**given),
            deadline=_deadline(timeout),
            stream=stream,
            name=self._body.__name__,
            **cache_options(**caching),
        )
        return {**self._bound, **arguments}, execution

    def _check_names(self, arguments: Mapping[str, Any], *options: str) -> None:
        """Raise ``InvalidArgument`` for one that is not the body's; ``options`` could be meant."""
        unknown = [name for name in arguments if name not in self.arg_names]
        if not unknown or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self._parameters):
            return
        from radixrt.settings import did_you_mean

        way_out = f"{self._body.__name__} takes: {', '.join(self.arg_names) or 'no arguments'}"
        hint = did_you_mean(unknown[0], [*self.arg_names, *options])
        raise InvalidArgument(unknown[0], arguments[unknown[0]], way_out + hint)

    def _arguments(self, index: int, row: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
        if isinstance(row, Mapping):
            return {**self._bound, **row}
        names = self.arg_names
        required = [p for p in self._parameters if p.default is p.empty and p.name in names]
        if isinstance(row, str) or not isinstance(row, Sequence):
            way_out = "use a mapping of arguments, or a sequence of them"
            raise InvalidArgument(f"batch_kwargs[{index}]", row, way_out)
        arguments = {**self._bound, **dict(zip(names, row, strict=False))}
        missing = [p.name for p in required if p.name not in arguments]
        if len(row) > len(names) or missing:
            way_out = f"{self._body.__name__} takes: {', '.join(names) or 'no arguments'}"
            raise InvalidArgument(f"batch_kwargs[{index}]", row, way_out)
        return arguments

    def _row_starter(
        self, backend: Backend | None, sampling: dict[str, Any], timeout: float | None
    ) -> Callable[[dict[str, Any]], Row]:
        caching = cache_options(**{k: sampling.pop(k) for k in CACHE_NAMES & sampling.keys()})
        unknown = [name for name in sampling if name not in SAMPLING_NAMES]
        if unknown:
            raise InvalidArgument(unknown[0], sampling[unknown[0]], "no such option of run_batch")
        chosen = default.choose(backend)
        defaults: SamplingOptions = sampling_options(**sampling)
        _deadline(timeout)
        name = self._body.__name__

        def start(arguments: dict[str, Any]) -> Row:
            deadline = _deadline(timeout)
            execution = Execution(
                chosen, defaults=defaults, deadline=deadline, name=name, **caching
            )
            state = ProgramState(execution)
            return Row(state, functools.partial(self.execute, state, (), arguments))

        return start


class CacheOptions(TypedDict):
    """Whose cache a program uses."""

    tenant: str
    cache: CacheUse


def cache_options(*, tenant: str = "", cache: CacheUse = "shared") -> CacheOptions:
    """Return checked options. Raises ``InvalidArgument``."""
    if not isinstance(tenant, str):
        raise InvalidArgument("tenant", tenant, "use a string")
    if cache not in get_args(CacheUse):
        raise InvalidArgument("cache", cache, f"use one of {', '.join(get_args(CacheUse))}")
    return {"tenant": tenant, "cache": cache}


def _run_unattended(
    program: Function, state: ProgramState, args: tuple[Any, ...], arguments: dict[str, Any]
) -> None:
    # What the body raises is kept and raised where the state is read.
    with contextlib.suppress(BaseException), _abandoned_on_error(state.execution):
        program.execute(state, args, arguments)


@contextlib.contextmanager
def _abandoned_on_error(execution: Execution) -> Iterator[None]:
    try:
        yield
    except BaseException:
        execution.abandon()
        raise


def _on_thread(run: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def target() -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, name="radixrt-event-loop", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=1.0)
    if errors:
        raise errors[0]


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise InvalidArgument("timeout", timeout, "use a positive number of seconds")
    return time.monotonic() + timeout


def _keeps_errors(on_error: str) -> bool:
    if on_error not in ("raise", "keep"):
        raise InvalidArgument("on_error", on_error, "use raise or keep")
    return on_error == "keep"
