"""What only the host has, in terms of the device's tree."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

from radixrt.cache.node import NEVER, TOKEN_BYTES, Node, common_prefix
from radixrt.cache.tree import Tree


class Rest(NamedTuple):
    """The tokens of a host's run behind its first ``skip`` bytes, which the device lacks.

    ``parent`` is the id of what they follow: a node of the device, or another rest.
    """

    node: Node
    skip: int
    parent: int
    length: int


class HostPicture:
    """Compares the host's tree with the device's; changes neither.

    ``covered`` says of the device's nodes, by serial, how many of their first tokens the host has.
    What it has beyond them are *rests*: nodes of their own, named by the host's serials, negated.
    Both are as the last ``sweep`` found them.
    """

    def __init__(self, device: Tree, tree: Tree, shows: Callable[[str], bool]) -> None:
        self.tree = tree
        self.covered: dict[int, int] = {}
        self._device = device
        self._shows = shows
        self._rests: dict[int, Rest] = {}

    def clear(self) -> None:
        """Forget what was found."""
        self.covered, self._rests = {}, {}

    def sweep(self, max_nodes: int) -> tuple[set[int], set[int]]:
        """Compare up to ``max_nodes`` of the host's nodes, the newest of each run first; return the
        ids that changed (of rests and of device nodes whose cover changed), and those that went."""
        covered: dict[int, int] = {}
        rests: dict[int, Rest] = {}
        left: deque[tuple[Node, Node | None, int, int]] = deque()
        for namespace, root in self.tree.roots.items():
            top = self._device.roots.get(namespace)
            if top is None:
                rests[-root.serial] = Rest(root, len(root.key), 0, len(root.key))
            left.append((root, top, 0, -root.serial))
        num_visited = 0
        while left and num_visited < max_nodes:
            parent, holder, at, parent_id = left.popleft()
            newest = islice(reversed(parent.children.values()), max_nodes - num_visited)
            for node in newest:
                num_visited += 1
                if holder is None:
                    rests[-node.serial] = Rest(node, 0, parent_id, len(node.key))
                    left.append((node, None, 0, -node.serial))
                    continue
                end, end_at, matched = self._along(node.key, holder, at, covered)
                if matched == len(node.key):
                    left.append((node, end, end_at, 0))
                    continue
                rests[-node.serial] = Rest(node, matched, end.serial, len(node.key))
                left.append((node, None, 0, -node.serial))
        before, cover_before = self._rests, self.covered
        changed = {node_id for node_id, rest in rests.items() if before.get(node_id) != rest}
        changed |= {
            serial
            for serial in covered.keys() | cover_before.keys()
            if covered.get(serial) != cover_before.get(serial)
        }
        self._rests, self.covered = rests, covered
        return changed, before.keys() - rests.keys()

    def _along(
        self, key: bytearray, holder: Node, at: int, covered: dict[int, int]
    ) -> tuple[Node, int, int]:
        """Follow ``key`` in the device's tree from ``at`` bytes into ``holder``; return where it
        leaves it (node, bytes) and how much of the key was followed, in whole pages."""
        page_bytes = self._device.page_bytes
        data, done = bytes(key), 0
        while done < len(data):
            if holder.parent is not None and at < len(holder.key):
                common = common_prefix(data, done, holder.key[at:]) // page_bytes * page_bytes
                at, done = at + common, done + common
                known = covered.get(holder.serial, 0)
                covered[holder.serial] = max(known, at // TOKEN_BYTES)
                if done == len(data) or at < len(holder.key):
                    break
            child = holder.children.get(data[done : done + page_bytes])
            if child is None:
                break
            holder, at = child, 0
        return holder, at, done

    # ------------------------------------------------------------ what is told

    def nodes(self, max_nodes: int, parents: set[int], heads: bool) -> list[dict[str, Any]]:
        """Return the longest rests that follow ``parents`` or each other, parents first."""
        total = {node_id: rest.length - rest.skip for node_id, rest in self._rests.items()}
        for node_id in reversed(self._rests):  # children were found after their parents
            parent = self._rests[node_id].parent
            if parent in total:
                total[parent] += total[node_id]
        order = sorted(self._rests, key=lambda node_id: -total[node_id])
        told: list[dict[str, Any]] = []
        has = set(parents)
        for node_id in order:
            if len(told) == max_nodes:
                break
            if self._rests[node_id].parent in has or self._rests[node_id].parent == 0:
                record = self.node(node_id, heads)
                if record is not None:
                    has.add(node_id)
                    told.append(record)
        return told

    def node(self, node_id: int, heads: bool) -> dict[str, Any] | None:
        """Return the record of a rest; None if it has gone."""
        rest = self._rests.get(node_id)
        if rest is None or rest.node.is_dead:
            return None
        node, skip = rest.node, rest.skip
        num_tokens = (rest.length - skip) // TOKEN_BYTES
        record: dict[str, Any] = {
            "id": node_id,
            "parent": rest.parent,
            "tokens": num_tokens,
            "tier": "host",
            "host": num_tokens,
            "disk": 0,
            "uses": 0,
            "used": None if node.used == NEVER else node.used,
            "locked": node.locks > 0,
            "leases": 0,
            "ended": False,
            "kept_until": None,
            "children": len(node.children),
        }
        if node.parent is None:
            record["namespace"] = node.key.decode("utf-8")
        elif heads and self._shows(namespace_of(node)):
            record["head"] = bytes(node.key[skip : skip + HEAD_BYTES])
        return record

    def path(self, node_id: int, max_bytes: int) -> tuple[str, list[tuple[int, bytes]]] | None:
        """Return the namespace and the whole prefix up to the end of a rest, as the host's runs;
        None if it has gone. The device's part of the prefix has the id 0."""
        rest = self._rests.get(node_id)
        if rest is None or rest.node.is_dead:
            return None
        runs: list[tuple[int, bytes]] = []
        step, left = rest.node, max_bytes
        while step.parent is not None:
            own = self._rests.get(-step.serial)
            skip = own.skip if own is not None else len(step.key)
            for key, of in ((step.key[skip:], -step.serial), (step.key[:skip], 0)):
                if left > 0 and key:
                    runs.append((of, bytes(key[-left:])))
                left -= len(key)
            step = step.parent
        return step.key.decode("utf-8"), runs[::-1]


def namespace_of(node: Node) -> str:
    """Return the namespace that a node belongs to."""
    while node.parent is not None:
        node = node.parent
    return node.key.decode("utf-8")


HEAD_BYTES = 32 * TOKEN_BYTES
"""Bytes of a run that are told of it: its first tokens."""
