"""Which runs of the tree are on disk as well."""

from __future__ import annotations

from radixrt.cache.disk import DiskTier
from radixrt.cache.hicache import HiCache
from radixrt.cache.node import Node, decode
from radixrt.cache.pagekeys import extend_keys, root_key

MAX_HASHED_PAGES = 4096
"""Pages whose keys are computed between two sweeps at most; about a microsecond each."""


class StoredRuns:
    """Asks the disk's index for runs of the device's tree, by the keys of their pages.

    Keys are remembered by node as long as somebody looks; a node whose keys there was no time for
    counts as not stored until the next sweep.
    """

    def __init__(self, disk: DiskTier, page_tokens: int) -> None:
        self._disk = disk
        self._page_tokens = page_tokens
        self._keys: dict[int, tuple[bytes, ...]] = {}
        self._counts: dict[int, int] = {}
        self._pages_left = MAX_HASHED_PAGES

    @classmethod
    def of(cls, tiers: HiCache, page_tokens: int) -> StoredRuns | None:
        """Return one for the disk among the tiers; None where there is none."""
        disks = [tier for tier in tiers.stores if isinstance(tier, DiskTier)]
        return cls(disks[0], page_tokens) if disks else None

    def version(self) -> tuple[int, int]:
        """Return something that changes when the disk's pages do."""
        stats = self._disk.stats()
        return stats.ready, stats.written

    def num_tokens(self, node: Node) -> int:
        """Return how many of the run's first tokens are on disk, in whole pages."""
        keys = self._keys_of(node)
        num = self._disk.num_leading(keys) if keys is not None else 0
        self._counts[node.serial] = num
        return num * self._page_tokens

    def sweep(self, nodes: dict[int, Node]) -> set[int]:
        """Return the serials of the nodes that have come to disk, or gone, since they were told."""
        self._pages_left = MAX_HASHED_PAGES
        changed: set[int] = set()
        for serial, count in self._counts.items():
            node = nodes.get(serial)
            keys = self._keys_of(node) if node is not None else None
            if keys is not None and self._disk.num_leading(keys) != count:
                changed.add(serial)
        return changed

    def forget(self, serial: int) -> None:
        """The node has gone or begins elsewhere now."""
        self._keys.pop(serial, None)
        self._counts.pop(serial, None)

    def clear(self) -> None:
        """Forget everything."""
        self._keys.clear()
        self._counts.clear()

    def _keys_of(self, node: Node) -> tuple[bytes, ...] | None:
        if node.parent is None:
            return (root_key(node.key.decode("utf-8")),)
        num_pages = node.num_tokens // self._page_tokens
        keys = self._keys.get(node.serial, ())
        if len(keys) < num_pages:
            if self._pages_left < num_pages - len(keys):
                return None
            before = keys or self._keys_of(node.parent)
            if not before:
                return None
            self._pages_left -= num_pages - len(keys)
            tokens = decode(node.key)[len(keys) * self._page_tokens :]
            keys += extend_keys(before[-1], tokens, self._page_tokens)
            self._keys[node.serial] = keys
        return keys[:num_pages]
