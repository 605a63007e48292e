"""Reading a program's text while it is being generated."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from radixrt.errors import Cancelled, DeadlineExceeded
from radixrt.lang.branch import STREAM_CREDIT, Branch
from radixrt.lang.call import Signal, Waiting, wait_until, wait_until_in_loop
from radixrt.lang.execution import Execution
from radixrt.lang.transcript import CallStep, Constant, RoleStep, Scope


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text and what is known of the generation it belongs to."""

    text: str
    meta_info: dict[str, Any]
    is_last: bool = False
    """The end of a generation: ``meta_info`` is complete."""


class _CallReader:
    """The pieces of one call. Gives credit back for the chunks it has taken."""

    def __init__(self, step: CallStep, execution: Execution) -> None:
        self._step = step
        self._execution = execution
        self._branch: Branch = execution.branch
        self._taken = 0
        self._ungranted = 0
        self._text = ""

    @property
    def signal(self) -> Signal:
        return self._step.call.signal

    @property
    def deadline(self) -> float | None:
        return self._step.deadline

    def is_ready(self) -> bool:
        call = self._step.call
        return call.is_done or len(call.chunks) > self._taken

    def take(self) -> Piece:
        """Return what is new; only when ``is_ready``. Raises the failure of a failed call."""
        call = self._step.call
        if not call.is_done or (call.error is None and len(call.chunks) > self._taken):
            new = call.chunks[self._taken :]
            self._taken += len(new)
            self._give_credit(len(new))
            text = "".join(chunk.text for chunk in new)
            self._text += text
            return Piece(text, self._step.partial_meta_info)
        self._execution.calls.finish(self._step)
        whole = self._step.text
        rest = whole[len(self._text) :] if whole.startswith(self._text) else ""
        info = self._step.meta_info
        return Piece(rest, info[0] if isinstance(info, list) else info, is_last=True)

    def expire(self) -> None:
        self._execution.calls.expire()

    def _give_credit(self, chunks: int) -> None:
        self._ungranted += chunks
        if self._ungranted >= STREAM_CREDIT // 2:
            self._branch.grant(self._step.call, self._ungranted)
            self._ungranted = 0


class _Cursor:
    """A position in a program's text. ``next`` gives a piece, ``None`` where it has to wait."""

    def __init__(self, execution: Execution, var_name: str | None) -> None:
        self._execution = execution
        self._var_name = var_name
        self._index = 0
        self._end: int | None = None
        self._reader: _CallReader | None = None
        self._is_found = var_name is None
        self._is_over = False

    @property
    def waiting(self) -> Waiting:
        """What to wait for where there is nothing new."""
        execution, reader = self._execution, self._reader
        backend = execution.backend
        return {
            "signal": execution.branch.signal if reader is None else reader.signal,
            "predicate": self.is_ready,
            "deadline": execution.body.deadline if reader is None else reader.deadline,
            "is_connected": lambda: backend.is_open,
        }

    def is_ready(self) -> bool:
        """Whether ``next`` would give something other than None."""
        if self._reader is not None:
            return self._reader.is_ready()
        if not self._execution.body.is_running:
            return True
        transcript = self._execution.transcript
        if self._is_found:
            return self._index < len(transcript.steps)
        variable = transcript.variables.get(self._var_name or "")
        return variable is not None and not (isinstance(variable, Scope) and variable.end is None)

    def expire(self) -> None:
        """The deadline has passed while ``is_ready`` did not hold."""
        if self._reader is None:
            raise DeadlineExceeded("the program did not end within its timeout")
        self._reader.expire()

    def __iter__(self) -> Iterator[Piece | None]:
        return self

    def __next__(self) -> Piece | None:
        if not self.is_ready():
            return None
        if not self._is_found:
            return self._find()
        if self._reader is not None:
            piece = self._reader.take()
            if piece.is_last:
                self._reader = None
            return piece
        steps = self._execution.transcript.steps
        if self._is_over or self._index >= (len(steps) if self._end is None else self._end):
            if self._var_name is None:
                self._execution.body.wait()
            raise StopIteration
        step = steps[self._index]
        self._index += 1
        if isinstance(step, CallStep):
            self._reader = _CallReader(step, self._execution)
            return next(self)
        return Piece("" if isinstance(step, RoleStep) else step.text, {})

    def _find(self) -> Piece | None:
        assert self._var_name is not None
        variable = self._execution.values.variable(self._var_name)
        self._is_found = True
        match variable:
            case CallStep():
                self._is_over = True
                self._reader = _CallReader(variable, self._execution)
            case Scope():
                self._index, self._end = variable.begin, variable.end
            case Constant():
                self._is_over = True
                return Piece(str(variable.value), {})
        return next(self)


def text_iter(execution: Execution, var_name: str | None) -> Generator[str, None, None]:
    """Yield new text until the end; closing it earlier closes the branch."""
    cursor = _Cursor(execution, var_name)
    with _abandoning(execution):
        for piece in cursor:
            if piece is None:
                if not wait_until(**cursor.waiting):
                    cursor.expire()
            elif piece.text:
                yield piece.text


async def text_in_loop(execution: Execution, var_name: str | None) -> AsyncGenerator[str, None]:
    """``text_iter`` for a running event loop."""
    pieces = _pieces_in_loop(execution, var_name)
    try:
        async for piece in pieces:
            if piece.text:
                yield piece.text
    finally:
        await pieces.aclose()


async def text_and_meta_in_loop(
    execution: Execution, var_name: str | None
) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
    """Pairs of text and meta info, for a running event loop."""
    pieces = _pieces_in_loop(execution, var_name)
    try:
        async for piece in pieces:
            if piece.text or piece.is_last:
                yield piece.text, piece.meta_info
    finally:
        await pieces.aclose()


async def _pieces_in_loop(
    execution: Execution, var_name: str | None
) -> AsyncGenerator[Piece, None]:
    cursor = _Cursor(execution, var_name)
    with _abandoning(execution):
        for piece in cursor:
            if piece is not None:
                yield piece
            elif not await wait_until_in_loop(**cursor.waiting):
                cursor.expire()


@contextlib.contextmanager
def _abandoning(execution: Execution) -> Iterator[None]:
    """Leave the branch to nobody when its iterator is closed, or what reads it fails."""
    try:
        yield
    except BaseException:
        execution.abandon(Cancelled("the iterator over the program's text was closed"))
        raise
