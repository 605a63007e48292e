"""The run of a program's body: on which thread, until when, and what it came to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from radixrt.errors import DeadlineExceeded
from radixrt.lang.call import Signal, wait_until


class Body:
    """A body that runs, or has run, on some thread. Others wait for it by ``signal``.

    ``deadline`` (monotonic seconds) bounds every wait, also those of the body itself.
    """

    def __init__(
        self, signal: Signal, is_connected: Callable[[], bool], deadline: float | None
    ) -> None:
        self._signal = signal
        self._is_connected = is_connected
        self._thread: int | None = None
        self.deadline = deadline
        self.is_running = False
        self.value: Any = None
        """What it returned."""
        self.error: BaseException | None = None
        """What it raised."""

    def run(
        self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Run a body on this thread; raises what it raises."""
        with self._running():
            self.value = body(*args, **kwargs)

    async def run_coroutine(
        self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Run an ``async def`` body in the running event loop; raises what it raises."""
        with self._running():
            self.value = await body(*args, **kwargs)

    def wait(self, or_until: Callable[[], bool] = lambda: False) -> None:
        """Wait until a body on another thread has ended; raises what it raised."""
        if self.is_running and threading.get_ident() != self._thread:
            self.wait_for_change(lambda: not self.is_running or or_until())
        if self.error is not None and not self.is_running and not or_until():
            raise self.error

    def wait_for_change(self, predicate: Callable[[], bool]) -> None:
        """Wait until ``predicate()`` holds; it is looked at when the branch makes progress."""
        if not wait_until(
            self._signal, predicate, deadline=self.deadline, is_connected=self._is_connected
        ):
            raise DeadlineExceeded("the program did not end within its timeout")

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        self._thread = threading.get_ident()
        self.is_running = True
        try:
            yield
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.is_running = False
            self._signal.notify()
