"""A program over many rows: bounded threads, bounded rows in flight, results in order.

One thread, the one that takes the results, drives everything: it starts rows while there is room,
closes those that have ended, writes the journal and yields. Bodies run on a bounded pool. A row
whose body has returned holds no thread while its calls are under way: the client's reader reports
when the last of them has ended.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from radixrt.errors import InvalidArgument, RadixError
from radixrt.lang.batch_report import BatchReport
from radixrt.lang.journal import FinishedRow, Journal
from radixrt.lang.progress import ProgressBar
from radixrt.lang.state import ProgramState

_AUTO_THREADS = 64
_AUTO_IN_FLIGHT = 256

_TICK_S = 0.2
"""How often deadlines of rows that hold no thread are looked at."""

_RUN_AHEAD = 4
"""A generator's rows may be this many times ``max_in_flight`` ahead of the one taken last."""

Outcome = ProgramState | FinishedRow | Exception


@dataclass(frozen=True, slots=True)
class Row:
    """A row about to run."""

    state: ProgramState
    body: Callable[[], None]


class Batch:
    """One run over many rows. ``results`` is its only use, once."""

    def __init__(
        self,
        start: Callable[[dict[str, Any]], Row],
        rows: Sequence[dict[str, Any]],
        *,
        num_threads: int | Literal["auto"],
        max_in_flight: int | None,
        keep_errors: bool,
        journal: str | os.PathLike[str] | None,
        resume: bool,
        progress: str | None,
        run_ahead: bool,
        report: BatchReport | None = None,
    ) -> None:
        """``progress`` is the bar's title, None shows none. ``run_ahead``: rows wait for results
        to be taken, at most ``_RUN_AHEAD`` times ``max_in_flight`` ahead. ``report`` is written
        when the results have been taken, or taking them was given up."""
        threads = _AUTO_THREADS if num_threads == "auto" else _count("num_threads", num_threads)
        if max_in_flight is not None:
            self._max_in_flight = _count("max_in_flight", max_in_flight)
        else:
            self._max_in_flight = _AUTO_IN_FLIGHT if num_threads == "auto" else threads
        if resume and journal is None:
            raise InvalidArgument("resume", resume, "name the journal to resume from")
        self._start = start
        self._rows = rows
        self._num_threads = max(1, min(threads, self._max_in_flight, len(rows)))
        self._keep_errors = keep_errors
        self._journal = None if journal is None else Journal(journal, rows, resume=resume)
        self._progress = progress
        self._report = report
        self._window = self._max_in_flight * _RUN_AHEAD if run_ahead else len(rows)
        self._ended: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
        self._in_flight: dict[int, ProgramState] = {}
        self._is_cancelled = False

    def results(self) -> Iterator[Outcome]:
        """Yield the rows' results in order; closing the iterator cancels what still runs."""
        finished: dict[int, Outcome] = {}
        if self._journal is not None:
            finished.update(self._journal.finished)
            self._journal.open()
        if self._report is not None:
            self._report.resumed(len(finished))
        pool = ThreadPoolExecutor(self._num_threads, "radixrt-row")
        bar = ProgressBar(self._progress, len(self._rows), done=len(finished))
        waiting = iter([index for index in range(len(self._rows)) if index not in finished])
        upcoming = next(waiting, None)
        try:
            for taken in range(len(self._rows)):
                while taken not in finished:
                    while (
                        upcoming is not None
                        and len(self._in_flight) < self._max_in_flight
                        and upcoming < taken + self._window
                    ):
                        self._launch(upcoming, pool)
                        upcoming = next(waiting, None)
                    for index, outcome in self._take_ended():
                        finished[index] = outcome
                        bar.advance()
                yield self._accept(taken, finished.pop(taken))
        finally:
            self._cancel()
            pool.shutdown(wait=False, cancel_futures=True)
            bar.close()
            if self._journal is not None:
                self._journal.close()
            if self._report is not None:
                self._report.write()

    # ------------------------------------------------------------ one row

    def _launch(self, index: int, pool: ThreadPoolExecutor) -> None:
        if self._report is not None:
            self._report.began(index)
        row = self._start(self._rows[index])
        self._in_flight[index] = row.state
        pool.submit(self._run, index, row)

    def _run(self, index: int, row: Row) -> None:
        """Run a row's body on a thread of the pool."""
        if self._is_cancelled:
            return
        try:
            row.body()
        except BaseException as error:
            row.state.execution.abandon()
            self._ended.put((index, error))
        else:
            row.state.execution.calls.on_settled(lambda: self._ended.put((index, None)))

    def _take_ended(self) -> Iterator[tuple[int, Outcome]]:
        """Wait for rows that end, a tick at most, and finish them."""
        try:
            index, error = self._ended.get(timeout=_TICK_S)
            while True:
                yield index, self._finish(index, error)
                index, error = self._ended.get_nowait()
        except queue.Empty:
            for state in self._in_flight.values():
                state.execution.calls.expire()

    def _finish(self, index: int, error: BaseException | None) -> Outcome:
        """Close a row whose calls have all ended, and write it down."""
        state = self._in_flight.pop(index)
        if error is None:
            try:
                state.execution.calls.raise_unmet_failure()
            except RadixError as failure:
                error = failure
        state.close()
        if error is not None and not isinstance(error, Exception):
            raise error  # an exit or an interrupt raised by the body
        if self._journal is not None:
            self._journal.write(index, state if error is None else error)
        if self._report is not None:
            self._report.ended(index, state if error is None else error)
        return state if error is None else error

    def _accept(self, index: int, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Exception) and not self._keep_errors:
            outcome.add_note(f"in row {index} of run_batch")
            raise outcome
        return outcome

    def _cancel(self) -> None:
        self._is_cancelled = True
        for state in self._in_flight.values():
            state.execution.abandon()
        self._in_flight.clear()


def _count(argument: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(argument, value, "use 1 or more")
    return value
