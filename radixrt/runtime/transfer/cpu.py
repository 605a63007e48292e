"""Moving pages between two pools of a CPU, in a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

from radixrt._native import Kernels

Int32 = NDArray[np.int32]
log = logging.getLogger(__name__)


PIECE_BYTES = 32 << 10
"""Layers of a page that are smaller are copied together: each place that is jumped to in memory
costs as much as a few kilobytes."""


class CpuMove:
    """A move whose layers are copied by whoever comes first: the copy thread or who waits for one.

    So a copy thread that is late, or has died, delays nobody: the forward copies what it needs. A
    *group* of layers is copied at a time, in the order of the device's pages: neighbours there are
    one run.
    """

    def __init__(self, mover: CpuMover, pages: Int32, host_pages: Int32, *, to_host: bool) -> None:
        self.num_pages = len(pages)
        self.seconds = 0.0
        self.has_failed = False
        self._mover = mover
        order = np.argsort(pages)
        self._pages = torch.from_numpy(np.asarray(pages, np.int32)[order])
        self._host_pages = torch.from_numpy(np.asarray(host_pages, np.int32)[order])
        self._to_host = to_host
        self._changed = threading.Condition()
        self._todo = deque(range(mover.num_groups))
        self._done: set[int] = set()
        self._started = 0.0

    @property
    def is_done(self) -> bool:
        """See ``Move``."""
        return len(self._done) == self._mover.num_groups

    def wait_layer(self, layer: int) -> None:
        """See ``Move``."""
        self._wait_group(layer // self._mover.group_layers)

    def wait_all(self) -> None:
        """See ``Move``."""
        for group in range(self._mover.num_groups):
            self._wait_group(group)

    finish = wait_all

    def run(self) -> None:
        """Copy every layer that nobody else has begun."""
        while self._copy_next(self._mover.num_groups):
            pass

    def _wait_group(self, group: int) -> None:
        while group not in self._done:
            if not self._copy_next(group):
                with self._changed:
                    self._changed.wait_for(lambda: group in self._done or self._is_todo(group))

    def _is_todo(self, group: int) -> bool:
        return bool(self._todo) and self._todo[0] <= group

    def _copy_next(self, last: int) -> bool:
        """Copy the next group up to ``last``; False when others have begun all of them."""
        with self._changed:
            if not self._is_todo(last):
                return False
            group = self._todo.popleft()
            self._started = self._started or time.perf_counter()
        try:
            self._mover.copy_group(self._pages, self._host_pages, group, self._to_host)
        except BaseException:
            with self._changed:
                self._todo.appendleft(group)
                self._changed.notify_all()
            raise
        with self._changed:
            self._done.add(group)
            if self.is_done:
                self.seconds = time.perf_counter() - self._started
            self._changed.notify_all()
        return True


class CpuMover:
    """The mover "cpu"; see ``Mover``. Native copies, which release the interpreter lock.

    ``host`` is [host_pages, num_layers, 2, page_size, num_kv_heads, head_dim]: a page in one piece,
    of each layer the keys and then the values. ``keys`` and ``values`` are the pools of ``KvPool``.
    """

    name = "cpu"

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, host: torch.Tensor) -> None:
        self.host = host
        num_layers = keys.shape[0]
        self.group_layers = min(num_layers, -(-PIECE_BYTES // host[0, 0].nbytes))
        self.num_groups = -(-num_layers // self.group_layers)
        self._num_layers = num_layers
        self._keys = keys
        self._values = values
        self._kernels = Kernels(torch.Tensor, "best", 1)
        self._queue: queue.SimpleQueue[CpuMove | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=_work, args=(self._queue,), name="radixrt-copy", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._queue.put, None)

    def warm_up(self, num_pages: int) -> None:
        """See ``Mover``."""

    def load(self, pages: Int32, host_pages: Int32) -> CpuMove:
        """See ``Mover``."""
        return self._begin(CpuMove(self, pages, host_pages, to_host=False))

    def store(self, pages: Int32, host_pages: Int32) -> CpuMove:
        """See ``Mover``."""
        return self._begin(CpuMove(self, pages, host_pages, to_host=True))

    def close(self) -> None:
        """See ``Mover``."""
        self._queue.put(None)
        self._thread.join()

    def copy_group(
        self, pages: torch.Tensor, host_pages: torch.Tensor, group: int, to_host: bool
    ) -> None:
        """Copy one group of layers of the pages, on the calling thread."""
        first = group * self.group_layers
        last = min(first + self.group_layers, self._num_layers)
        self._kernels.move_pages(
            self._keys, self._values, self.host, pages, host_pages, first, last, to_host
        )

    def _begin(self, move: CpuMove) -> CpuMove:
        self._queue.put(move)
        return move


def _work(moves: queue.SimpleQueue[CpuMove | None]) -> None:
    while (move := moves.get()) is not None:
        try:
            move.run()
        except Exception:
            move.has_failed = True
            log.exception("the copy thread failed; who waits for the pages copies them")
        del move  # or the next wait would keep its mover alive
