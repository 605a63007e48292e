"""Saving what is cached to a directory, and reading it back: ``Save`` and ``Restore``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from radixrt.cache import segments
from radixrt.cache.disk import DiskTier
from radixrt.cache.hicache import HiCache
from radixrt.cache.saving import SavedCopy
from radixrt.errors import ConfigError
from radixrt.runtime.wire import EngineFailed, EngineReply, FromEngine

if TYPE_CHECKING:
    from radixrt.cache.records import Layout

MakeTiers = Callable[[], HiCache]


class Snapshots:
    """Directories of pages that clients ask for by name; owned by the engine's thread.

    ``tiers`` returns the runtime's tiers, made when there are none yet: pages pass through the
    host's memory on their way. A snapshot only ever holds segments and a lock: a directory with
    anything else in it is refused, so that no client can write to a place that is not one.
    """

    def __init__(self, tiers: MakeTiers, layout: Layout) -> None:
        self._tiers = tiers
        self._layout = layout
        self._saving: dict[int, SavedCopy] = {}

    @property
    def is_busy(self) -> bool:
        """Whether ``poll`` has something to do."""
        return bool(self._saving)

    def save(self, call: int, path: str) -> FromEngine | None:
        """Begin to write everything cached to ``path``; a message when it is refused."""
        try:
            folder = _folder(path)
            if folder.exists() and not _is_snapshot(folder):
                raise ConfigError(f"path={path}: not empty and no snapshot; name a new directory")
            tiers = self._tiers()
            store = DiskTier(
                folder, self._layout, tiers.host.data, name=f"save-{call}", clock=tiers.clock
            )
        except (ConfigError, OSError) as error:
            return EngineFailed(call, "bad_request", str(error))
        sequences = [*tiers.device.sequences(), *tiers.host.cache.sequences()]
        self._saving[call] = SavedCopy(tiers, store, sequences)
        return None

    def restore(self, call: int, path: str) -> FromEngine:
        """Let requests find the pages that were saved to ``path``; return the answer.

        They are read as they are asked for, and never written to.
        """
        try:
            folder = _folder(path)
            if not folder.is_dir() or not _is_snapshot(folder):
                raise ConfigError(f"path={path}: no snapshot; name a directory that was saved to")
            tiers = self._tiers()
            name = f"restored-{call}"
            store = DiskTier(
                folder, self._layout, tiers.host.data, read_only=True, name=name, clock=tiers.clock
            )
        except (ConfigError, OSError) as error:
            return EngineFailed(call, "bad_request", str(error))
        tiers.attach(store)
        return EngineReply(call, {"pages": store.stats().ready})

    def poll(self) -> list[FromEngine]:
        """Go on saving; return the answers to what is saved."""
        answers: list[FromEngine] = []
        for call, saving in list(self._saving.items()):
            if not saving.poll():
                continue
            del self._saving[call]
            pages = saving.store.stats().ready
            saving.store.close()
            if saving.num_failed:
                text = f"{saving.num_failed} writes failed; {pages} pages are saved"
                answers.append(EngineFailed(call, "engine_fault", text, retryable=True))
            else:
                answers.append(EngineReply(call, {"pages": pages}))
        return answers

    def close(self) -> None:
        """Stop saving; idempotent."""
        for saving in self._saving.values():
            saving.give_up()
        self._saving.clear()


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_absolute():
        raise ConfigError(f"path={path}: give an absolute path on the runtime's machine")
    return folder


def _is_snapshot(folder: Path) -> bool:
    return all(p.name == "LOCK" or p.suffix == segments.SUFFIX for p in folder.iterdir())
