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


class CpuMove:
    """A move whose layers are copied by whoever comes first: the copy thread or who waits for one.

    So a copy thread that is late, or has died, delays nobody: the forward copies what it needs.
    """

    def __init__(self, mover: CpuMover, pages: Int32, host_pages: Int32, *, to_host: bool) -> None:
        self.num_pages = len(pages)
        self.seconds = 0.0
        self.has_failed = False
        self._mover = mover
        self._pages = torch.from_numpy(np.array(pages, np.int32))
        self._host_pages = torch.from_numpy(np.array(host_pages, np.int32))
        self._to_host = to_host
        self._changed = threading.Condition()
        self._todo = deque(range(mover.num_layers))
        self._done: set[int] = set()
        self._started = 0.0

    @property
    def is_done(self) -> bool:
        """See ``Move``."""
        return len(self._done) == self._mover.num_layers

    def wait_layer(self, layer: int) -> None:
        """See ``Move``."""
        while layer not in self._done:
            if not self._copy_next(layer):
                with self._changed:
                    self._changed.wait_for(lambda: layer in self._done or self._is_todo(layer))

    def wait_all(self) -> None:
        """See ``Move``."""
        for layer in range(self._mover.num_layers):
            self.wait_layer(layer)

    finish = wait_all

    def run(self) -> None:
        """Copy every layer that nobody else has begun."""
        while self._copy_next(self._mover.num_layers):
            pass

    def _is_todo(self, layer: int) -> bool:
        return bool(self._todo) and self._todo[0] <= layer

    def _copy_next(self, last: int) -> bool:
        """Copy the next layer up to ``last``; False when others have begun all of them."""
        with self._changed:
            if not self._is_todo(last):
                return False
            layer = self._todo.popleft()
            self._started = self._started or time.perf_counter()
        try:
            self._mover.copy_layer(self._pages, self._host_pages, layer, self._to_host)
        except BaseException:
            with self._changed:
                self._todo.appendleft(layer)
                self._changed.notify_all()
            raise
        with self._changed:
            self._done.add(layer)
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
        self.num_layers = keys.shape[0]
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

    def copy_layer(
        self, pages: torch.Tensor, host_pages: torch.Tensor, layer: int, to_host: bool
    ) -> None:
        """Copy one layer of the pages, on the calling thread."""
        self._kernels.move_pages(
            self._keys, self._values, self.host, pages, host_pages, layer, layer + 1, to_host
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
