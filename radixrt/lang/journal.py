"""The journal of a batch: one JSON line for each finished row, so that a run can be resumed.

A line is ``{"index", "key", "ret_value", "vars", "usage", "error"}``; ``key`` is a hash of the
row's arguments, ``error`` None or the error's class and text. Lines are written as rows finish and
may be in any order; of two lines for one row the later one counts. A last line that a crash has cut
short is dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson

from radixrt.errors import InvalidArgument, JournalError, ProgramError
from radixrt.lang.state import ProgramState
from radixrt.lang.toolset import plain


@dataclass(frozen=True, slots=True)
class FinishedRow:
    """What a journal keeps of a row that an earlier run has finished."""

    ret_value: Any
    variables: Mapping[str, Any] = field(default_factory=dict)
    token_counts: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def __contains__(self, name: object) -> bool:
        return name in self.variables

    def get_var(self, name: str) -> Any:
        """Return a variable as it was when the row finished."""
        if name not in self.variables:
            known = ", ".join(self.variables) or "none"
            raise InvalidArgument("name", name, f"no such variable; known: {known}")
        return self.variables[name]

    def usage(self) -> dict[str, int]:
        """Return the token counts of the row's calls, summed."""
        return dict(self.token_counts)

    def error(self) -> None:
        """Rows that failed are run again, so a finished row has no error."""
        return None


class Journal:
    """A journal that finished rows are appended to."""

    def __init__(
        self, path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], *, resume: bool
    ) -> None:
        """Begin a new journal, or read one to resume; ``finished`` has the rows it already holds.

        Raises ``JournalError`` when the file exists and ``resume`` is not set, when a row's
        arguments are not what they were, and when a line is damaged that is not the last.
        """
        self._path = os.fspath(path)
        self._keys = [_key(index, row) for index, row in enumerate(rows)]
        self.finished: dict[int, FinishedRow] = {}
        self._end = self._load() if resume else self._require_new()
        self._file: BinaryIO | None = None

    def open(self) -> None:
        """Open the file for ``write``; raises ``JournalError`` when that is not possible."""
        try:
            self._file = open(self._path, "ab")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise JournalError(f"{self._path}: {error}") from error
        self._file.truncate(self._end)

    def write(self, index: int, outcome: ProgramState | Exception) -> None:
        """Append a finished row and flush; ``JournalError`` names a row that is not JSON."""
        line: dict[str, Any] = {"index": index, "key": self._keys[index]}
        if isinstance(outcome, ProgramState):
            values = _readable(outcome)
            usage = outcome.execution.values.usage()
            line |= {"ret_value": outcome.ret_value, "vars": values, "usage": usage, "error": None}
        else:
            line |= {"ret_value": None, "vars": {}, "usage": {}}
            line["error"] = f"{type(outcome).__name__}: {outcome}"
        try:
            data = orjson.dumps(plain(line), option=orjson.OPT_APPEND_NEWLINE)
        except (TypeError, ValueError) as error:
            raise JournalError(
                f"{self._path}: row {index} cannot be written: {error}; return and set JSON values"
            ) from None
        assert self._file is not None
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file is not None:
            self._file.close()

    def _require_new(self) -> int:
        if os.path.exists(self._path) and os.path.getsize(self._path) > 0:
            raise JournalError(f"{self._path} exists; pass resume=True or name another file")
        return 0

    def _load(self) -> int:
        """Read the finished rows; returns where the last whole line ends."""
        try:
            with open(self._path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise JournalError(f"{self._path}: {error}") from error
        end = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:end].splitlines(), start=1):
            self._take(number, line)
        return end

    def _take(self, number: int, line: bytes) -> None:
        try:
            entry = orjson.loads(line)
            index, key = entry["index"], entry["key"]
            row = FinishedRow(entry["ret_value"], entry["vars"], entry["usage"])
            error = entry["error"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise JournalError(f"{self._path}, line {number}: not a journal's line") from None
        if not isinstance(index, int) or not 0 <= index < len(self._keys):
            raise JournalError(
                f"{self._path}, line {number}: row {index} is not one of this run's "
                f"{len(self._keys)} rows"
            )
        if key != self._keys[index]:
            raise JournalError(
                f"{self._path}, line {number}: row {index} had other arguments; "
                "resume with the rows of that run, or name another file"
            )
        if error is None:
            self.finished[index] = row
        else:
            self.finished.pop(index, None)


def _readable(state: ProgramState) -> dict[str, Any]:
    """The variables of a row; one whose failure the body has met is none."""
    values = {}
    for name in state.variables:
        with contextlib.suppress(ProgramError):
            values[name] = state[name]
    return values


def _key(index: int, arguments: Mapping[str, Any]) -> str:
    try:
        data = orjson.dumps(dict(arguments), option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise JournalError(
            f"arguments of row {index} cannot be journaled: {error}; use JSON values"
        ) from None
    return hashlib.sha256(data).hexdigest()[:32]
