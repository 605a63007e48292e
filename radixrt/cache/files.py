"""The calls that the disk tier makes of the operating system: one place, so that tests can fail."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


class Files:
    """Files by descriptor. Everything raises ``OSError``; nothing is retried."""

    def create(self, path: Path) -> int:
        """Make a file that is not there, for reading and writing, and its entry durable."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return descriptor

    def open(self, path: Path) -> int:
        """Open a file for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def open_to_read(self, path: Path) -> int:
        """Open a file for reading."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def size(self, descriptor: int) -> int:
        """Return the file's length."""
        return os.fstat(descriptor).st_size

    def read(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the buffers from ``offset`` on; return how many bytes there were."""
        return os.preadv(descriptor, list(buffers), offset)

    def write(self, descriptor: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        """Write the buffers at ``offset``; return how many bytes were written, which may be fewer
        than there are."""
        return os.pwritev(descriptor, list(buffers), offset)

    def sync(self, descriptor: int) -> None:
        """Return when what was written survives the power going off."""
        os.fdatasync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut the file to ``size`` bytes."""
        os.ftruncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        """Close the descriptor."""
        os.close(descriptor)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink(missing_ok=True)
