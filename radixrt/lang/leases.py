"""What a program tells the cache: what to keep, for how long, and what may go."""

from __future__ import annotations

from types import TracebackType

from radixrt.errors import InvalidArgument
from radixrt.lang.backend import Backend, default
from radixrt.lang.execution import Execution
from radixrt.lang.nodes import Expr, Gen, expression
from radixrt.lang.sampling import sampling_options
from radixrt.lang.source import caller

MAX_TTL_S = 86_400.0
MAX_PRIORITY = 3


class Lease:
    """``with s.lease(ttl=60):``, see ``ProgramState.lease``. ``release`` ends it early."""

    def __init__(self, execution: Execution, ttl: float, priority: int) -> None:
        check(ttl, priority)
        self._execution = execution
        execution.branch.hold(float(ttl), priority)

    def release(self) -> None:
        """Take the wish back. Idempotent; nothing happens on a state that is closed."""
        if not self._execution.branch.is_closed:
            self._execution.branch.hold(0.0, 0)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def warm(
    text: Expr | str,
    *,
    ttl: float = 300.0,
    priority: int = 1,
    tenant: str = "",
    backend: Backend | None = None,
) -> int:
    """Compute a prefix that programs will begin with, and keep it for ``ttl`` seconds of disuse.

    ``text`` is text or messages (``rt.system("…")``), exactly as the programs will write it, with
    their ``tenant``. Waits until it is cached; returns its tokens. Raises ``ProgramError`` when it
    cannot be computed.
    """
    check(ttl, priority)
    execution = Execution(default.choose(backend), tenant=tenant)
    where = caller()
    execution.execute(expression(text), where)
    execution.execute(Gen(None, sampling_options(max_tokens=1, temperature=0.0), where), where)
    execution.sync()
    execution.branch.hold(float(ttl), priority)
    execution.branch.leave()
    return execution.values.usage()["prompt_tokens"]


def check(ttl: float, priority: int) -> None:
    """Raise ``InvalidArgument`` for a lease that cannot be."""
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl <= MAX_TTL_S:
        raise InvalidArgument("ttl", ttl, f"use seconds above 0, up to {MAX_TTL_S:g}")
    if isinstance(priority, bool) or priority not in range(MAX_PRIORITY + 1):
        raise InvalidArgument("priority", priority, f"use 0 to {MAX_PRIORITY}")
