"""Copies between the pages of two memories, as the cache sees them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


class Move(Protocol):
    """A copy of pages that is under way.

    The pages of both pools belong to it until ``is_done``, or until ``has_failed``: then nothing
    touches them any more, unless somebody waits, who then copies what is missing.
    """

    num_pages: int
    has_failed: bool

    @property
    def is_done(self) -> bool:
        """Whether all pages have arrived. Never waits."""
        ...

    @property
    def seconds(self) -> float:
        """How long the copy took; valid once it is done."""
        ...

    def wait_layer(self, layer: int) -> None:
        """Let work that is launched from now on see the pages of one layer.

        On a CPU the pages are there when it returns; on a GPU the current stream waits for them.
        """
        ...

    def wait_all(self) -> None:
        """``wait_layer`` for all layers."""
        ...

    def finish(self) -> None:
        """Return when all pages have arrived."""
        ...


class Mover(Protocol):
    """Copies pages between the device's pool and the host's; one of each device.

    ``pages`` are the device's, ``host_pages`` the host's, int32 [n]; they are not kept. A move
    begins after everything launched on the device before.
    """

    name: str

    def warm_up(self, num_pages: int) -> None:
        """Compile what is compiled and choose, by the clock, between ways to copy. Overwrites the
        pages ``1 .. num_pages`` of both pools."""
        ...

    def load(self, pages: Int32, host_pages: Int32) -> Move:
        """Start copying ``host_pages`` to the device's ``pages``, the first layers first."""
        ...

    def store(self, pages: Int32, host_pages: Int32) -> Move:
        """Start copying the device's ``pages`` to ``host_pages``."""
        ...

    def close(self) -> None:
        """Finish what is under way; nothing can be moved afterwards."""
        ...
