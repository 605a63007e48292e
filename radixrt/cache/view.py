"""What there is to see of the trees: a bounded picture of them, and what has changed since.

While somebody looks, a view keeps a log of the nodes that changed, each once, in the order of their
last change. When nobody has looked for a while it goes; then a tree costs what it cost before.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Any

from radixrt.cache.beneath import HEAD_BYTES, HostPicture, namespace_of
from radixrt.cache.hicache import HiCache
from radixrt.cache.node import NEVER, TOKEN_BYTES, Node
from radixrt.cache.stored import StoredRuns
from radixrt.cache.tree import Tree

MAX_VISITED = 16_384
"""Nodes that a whole picture looks at; it shows the largest of them."""

MAX_LOG = 65_536
"""Changed nodes that are remembered; who comes later than that gets a whole picture."""

UNWATCHED_S = 15.0
"""How long nobody may look before the log ends."""

SWEEP_S = 1.0
"""How often the tiers below are compared with the device's tree at most."""

MAX_PATH_TOKENS = 65_536
"""Tokens of a path that are told at most; its end, if it has more."""


class TreeView:
    """Watches the device's tree and looks at the tiers below it; changes neither.

    ``look`` returns plain data, which ``radixrt.inspection`` describes. Owned by the cache's
    thread. A look at changes costs O(changes); a whole picture looks at ``MAX_VISITED`` nodes at
    most.
    """

    def __init__(
        self,
        tree: Tree,
        tiers: HiCache | None,
        clock: Callable[[], float] = time.monotonic,
        shows: Callable[[str], bool] = lambda namespace: True,
    ) -> None:
        """``shows``: whether the first tokens of a namespace's runs may be told."""
        self._tree = tree
        self._shows = shows
        self._clock = clock
        self._page_tokens = tree.page_bytes // TOKEN_BYTES
        self._log: OrderedDict[int, tuple[int, Node | None]] = OrderedDict()
        self._known: dict[int, Node] = {}
        self._num_notes = 0
        self._looked = self._swept = NEVER
        # Numbers of another view, of a restarted engine say, are not mistaken for this one's.
        self.generation = self._floor = time.time_ns() // 1000
        host = tiers.host if tiers is not None else None
        self._host = HostPicture(tree, host.cache.tree, shows) if host is not None else None
        self._stored = StoredRuns.of(tiers, self._page_tokens) if tiers is not None else None
        self._state_below: object = None

    # ------------------------------------------------------------ what the tree tells

    def appended(self, node: Node, before: int, key: bytes) -> None:
        """See ``Watcher``."""
        self._note(node)
        if node.parent is not None:
            self._note(node.parent)

    def cut(self, node: Node, num_pages: int) -> None:
        """See ``Watcher``."""
        if num_pages < node.num_pages:
            if self._stored is not None:
                self._stored.forget(node.serial)
            self._note(node)
            return
        self._forget(node.serial)
        if node.parent is not None:
            self._note(node.parent)

    def split(self, upper: Node, lower: Node) -> None:
        """See ``Watcher``."""
        if self._stored is not None:
            self._stored.forget(lower.serial)
        self._note(upper)
        self._note(lower)

    def merged(self, upper: Node, lower: Node) -> None:
        """See ``Watcher``."""
        self._forget(upper.serial)
        if self._stored is not None:
            self._stored.forget(lower.serial)
        self._note(lower)

    def changed(self, node: Node) -> None:
        """See ``Watcher``."""
        self._note(node)

    def cleared(self) -> None:
        """See ``Watcher``; each node that goes is told as well."""

    def _note(self, node: Node) -> None:
        self.generation += 1
        self._log[node.serial] = self.generation, node
        self._log.move_to_end(node.serial)
        self._bound()

    def _forget(self, serial: int) -> None:
        self.generation += 1
        self._log[serial] = self.generation, None
        self._log.move_to_end(serial)
        self._known.pop(serial, None)
        if self._stored is not None:
            self._stored.forget(serial)
        self._bound()

    def _bound(self) -> None:
        if len(self._log) > MAX_LOG:
            _, (self._floor, _) = self._log.popitem(last=False)
        self._num_notes += 1
        if self._num_notes % 1024 == 0 and self._clock() > self._looked + UNWATCHED_S:
            self.stop()

    def start(self) -> None:
        """Begin to watch, if it does not yet."""
        if self not in self._tree.watchers:
            self._floor = self.generation = max(self.generation + 1, time.time_ns() // 1000)
            self._tree.watchers += (self,)

    def stop(self) -> None:
        """Watch no longer and forget everything."""
        self._tree.watchers = tuple(one for one in self._tree.watchers if one is not self)
        self._log.clear()
        self._known.clear()
        if self._host is not None:
            self._host.clear()
        if self._stored is not None:
            self._stored.clear()

    # ------------------------------------------------------------ what is told

    def look(self, since: int, max_nodes: int, *, heads: bool) -> dict[str, Any]:
        """Return what changed after generation ``since``, or a whole picture where that is not
        known: ``generation``, ``is_full``, ``is_more``, ``nodes`` (parents first) and ``gone``.

        Of changes the oldest are told first, of a whole picture the largest nodes; neither has more
        than ``max_nodes`` entries, ancestors that come with them not counted. With ``is_more`` ask
        again at once. ``heads``: with the first tokens of each node.
        """
        self._looked = self._clock()
        self.start()
        self._sweep()
        if self._floor <= since <= self.generation:
            return self._changes(since, max_nodes, heads)
        generation = self.generation
        chosen = self._largest(max_nodes)
        nodes = [self._node(node, heads) for node in chosen]
        if self._host is not None:
            at_most = max(0, max_nodes - len(nodes))
            nodes += self._host.nodes(at_most, {node.serial for node in chosen}, heads)
        return {
            "generation": generation,
            "is_full": True,
            "is_more": False,
            "nodes": nodes,
            "gone": [],
        }

    def path(self, node_id: int) -> tuple[str, list[tuple[int, bytes]]] | None:
        """Return the namespace and, from the root on, the runs that lead to a node that was told
        of before: (id, tokens as ``encode`` writes them). None if it has gone."""
        if node_id < 0:
            if self._host is None:
                return None
            return self._host.path(node_id, MAX_PATH_TOKENS * TOKEN_BYTES)
        node = self._known.get(node_id)
        if node is None or not _is_alive(self._tree, node):
            return None
        runs: list[tuple[int, bytes]] = []
        left = MAX_PATH_TOKENS * TOKEN_BYTES
        step = node
        while step.parent is not None:
            if left > 0:
                runs.append((step.serial, bytes(step.key[-left:])))
            left -= len(step.key)
            step = step.parent
        return step.key.decode("utf-8"), runs[::-1]

    # ------------------------------------------------------------ inside

    def _changes(self, since: int, max_nodes: int, heads: bool) -> dict[str, Any]:
        changed: list[tuple[int, int, Node | None]] = []
        for serial, (generation, node) in reversed(self._log.items()):
            if generation <= since:
                break
            changed.append((generation, serial, node))
        is_more = len(changed) > max_nodes
        told = changed[::-1][:max_nodes]
        gone: list[int] = []
        nodes: dict[int, Node] = {}
        below: list[dict[str, Any]] = []
        for _, serial, node in told:
            if serial < 0 and self._host is not None:
                record = self._host.node(serial, heads)
                if record is None:
                    gone.append(serial)
                else:
                    below.append(record)
                    holder = self._known.get(record["parent"])
                    if holder is not None:
                        _add_path(nodes, holder)
            elif node is None or not _is_alive(self._tree, node):
                gone.append(serial)
            else:
                _add_path(nodes, node)
        return {
            "generation": told[-1][0] if is_more else self.generation,
            "is_full": False,
            "is_more": is_more,
            "nodes": [self._node(node, heads) for node in nodes.values()] + below,
            "gone": gone,
        }

    def _largest(self, max_nodes: int) -> list[Node]:
        """Return the nodes with the most tokens at and below them; ancestors come first."""
        visited: list[Node] = list(self._tree.roots.values())
        at = 0
        while at < len(visited) and len(visited) < MAX_VISITED:
            # What came last is what is used now.
            newest = islice(reversed(visited[at].children.values()), MAX_VISITED - len(visited))
            visited += newest
            at += 1
        total = {id(node): len(node.key) if node.parent is not None else 0 for node in visited}
        for node in reversed(visited):
            if node.parent is not None:
                total[id(node.parent)] += total[id(node)]
        # Roots first: an empty one counts no tokens. A sort that is stable keeps parents in front.
        visited.sort(key=lambda node: (node.parent is not None, -total[id(node)]))
        return visited[:max_nodes]

    def _node(self, node: Node, heads: bool) -> dict[str, Any]:
        self._known[node.serial] = node
        root = node.parent is None
        record: dict[str, Any] = {
            "id": node.serial,
            "parent": 0 if node.parent is None else node.parent.serial,
            "tokens": 0 if root else node.num_tokens,
            "tier": "device",
            "host": 0 if self._host is None else self._host.covered.get(node.serial, 0),
            "disk": 0,
            "uses": node.uses[0] if node.uses else 0,
            "used": None if node.used == NEVER else node.used,
            "locked": node.locks > 0,
            "leases": node.parks,
            "ended": node.is_ended,
            "kept_until": None if node.held_until == NEVER else node.held_until,
            "children": len(node.children),
        }
        if root:
            record["namespace"] = node.key.decode("utf-8")
        elif self._stored is not None:
            record["disk"] = self._stored.num_tokens(node)
        if heads and not root and self._shows(namespace_of(node)):
            record["head"] = bytes(node.key[:HEAD_BYTES])
        return record

    def _sweep(self) -> None:
        """Note which nodes' tiers below have changed; at most so often, and only if they have."""
        now = self._clock()
        if self._host is None or now < self._swept + SWEEP_S:
            return
        self._swept = now
        counters = (self._host.tree.counters.inserted_pages, self._host.tree.num_cached)
        stored = self._stored.version() if self._stored is not None else None
        if (counters, stored, self.generation) == self._state_below:
            return
        changed, gone = self._host.sweep(MAX_VISITED // 4)
        if self._stored is not None:
            changed |= self._stored.sweep(self._known)
        for node_id in changed:
            node = self._known.get(node_id)
            if node is not None:
                self._note(node)
            elif node_id < 0:
                self.generation += 1
                self._log[node_id] = self.generation, None
                self._log.move_to_end(node_id)
        for node_id in gone:
            self._forget(node_id)
        self._state_below = counters, stored, self.generation


def _is_alive(tree: Tree, node: Node) -> bool:
    if node.parent is None:
        return tree.roots.get(node.key.decode("utf-8")) is node
    return not node.is_dead


def _add_path(nodes: dict[int, Node], node: Node) -> None:
    """Add a node behind its ancestors."""
    path: list[Node] = []
    step: Node | None = node
    while step is not None and step.serial not in nodes:
        path.append(step)
        step = step.parent
    for one in reversed(path):
        nodes[one.serial] = one
