"""What a viewer is told of a tree adds up to the tree."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from radixrt.cache.learned import learned_policy
from radixrt.cache.node import Node
from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import Lease, RadixCache
from radixrt.cache.view import MAX_LOG, UNWATCHED_S, TreeView

Int32 = NDArray[np.int32]
PAGE = 2


class Viewer:
    """Keeps a picture by asking for changes, as the page does."""

    def __init__(self, view: TreeView, max_nodes: int = 10_000) -> None:
        self.view = view
        self.max_nodes = max_nodes
        self.generation = 0
        self.nodes: dict[int, dict[str, Any]] = {}
        self.num_told = 0

    def look(self) -> None:
        is_more = True
        while is_more:
            answer = self.view.look(self.generation, self.max_nodes, heads=True)
            if answer["is_full"]:
                self.nodes.clear()
            for gone in answer["gone"]:
                self.nodes.pop(gone, None)
            for node in answer["nodes"]:
                assert node["parent"] == 0 or node["parent"] in self.nodes
                self.nodes[node["id"]] = node
            self.num_told = len(answer["nodes"])
            self.generation, is_more = answer["generation"], answer["is_more"]


class Tree:
    """A cache that sequences are put into, held and evicted from."""

    def __init__(self, num_pages: int = 64) -> None:
        self.now = 0.0
        self.allocator = PageAllocator(num_pages)
        policy = learned_policy(num_pages, lambda: self.now)
        self.cache = RadixCache(self.allocator, PAGE, clock=lambda: self.now, policy=policy)
        self.held: list[Lease] = []

    def put(self, tokens: list[int], *, hold: bool = False) -> None:
        self.now += 1.0
        ids = np.array(tokens, np.int32)
        lease = self.cache.acquire("n", ids)
        needed = -(-len(ids) // PAGE) - len(lease.pages)
        if needed > self.allocator.num_free + self.cache.num_evictable:
            lease.release()
            return
        pages = np.concatenate([lease.pages, self.cache.take(needed)])
        lease.note_use()
        self.allocator.give(lease.extend(ids, pages, final=True).duplicates)
        if hold:
            self.held.append(lease)
        else:
            lease.release()

    def nodes(self) -> dict[int, Node]:
        nodes = list(self.cache.tree.roots.values())
        for node in nodes:
            nodes += node.children.values()
        return {node.serial: node for node in nodes}


def agrees(viewer: Viewer, tree: Tree) -> None:
    nodes = tree.nodes()
    assert viewer.nodes.keys() == nodes.keys()
    for serial, node in nodes.items():
        told = viewer.nodes[serial]
        assert told["parent"] == (0 if node.parent is None else node.parent.serial)
        assert told["locked"] == (node.locks > 0)
        assert told["leases"] == node.parks
        assert told["children"] == len(node.children)
        if node.parent is not None:
            assert told["tokens"] == node.num_tokens
            assert told["head"] == bytes(node.key[:128])
            assert told["uses"] == node.uses[0]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(st.integers(0, 1), min_size=1, max_size=12)),
        st.tuples(st.just("hold"), st.lists(st.integers(0, 1), min_size=1, max_size=12)),
        st.tuples(st.sampled_from(["release", "park", "end", "look"]), st.just([])),
        st.tuples(st.just("evict"), st.lists(st.integers(0, 1), min_size=1, max_size=5)),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(operations, st.sampled_from([1, 3, 10_000]))
def test_changes_add_up_to_the_tree(ops: list[tuple[str, list[int]]], max_nodes: int) -> None:
    tree = Tree()
    view = TreeView(tree.cache.tree, None, lambda: tree.now)
    patient = Viewer(view, max_nodes)
    view.look(0, 1, heads=False)
    patient.generation = view.generation  # it saw the tree when it was empty
    for name, tokens in ops:
        match name:
            case "put" | "hold":
                tree.put(tokens, hold=name == "hold")
            case "evict":
                tree.cache.evict(len(tokens))
            case "look":
                patient.look()
                agrees(patient, tree)
            case _ if tree.held:
                lease = tree.held.pop()
                lease.park(60.0) if name == "park" else lease.release(ended=name == "end")
        tree.cache.check()
    patient.look()
    agrees(patient, tree)


def test_a_look_at_few_changes_tells_few_nodes() -> None:
    tree = Tree(4096)
    viewer = Viewer(TreeView(tree.cache.tree, None, lambda: tree.now))
    for i in range(500):
        tree.put([i, i + 1, i + 2, i + 3])
    viewer.look()
    assert viewer.num_told == 501
    tree.put([7, 8, 9, 10, 11, 12])
    viewer.look()
    assert viewer.num_told <= 3
    viewer.look()
    assert viewer.num_told == 0


def test_a_whole_picture_is_bounded_and_has_the_largest_subtrees() -> None:
    tree = Tree(4096)
    for i in range(300):
        tree.put([i + 10, 1])
    tree.put([1, 2, *range(100)])
    tree.put([1, 2, *range(50, 150)])
    answer = TreeView(tree.cache.tree, None, lambda: tree.now).look(0, 4, heads=False)
    assert [node["tokens"] for node in answer["nodes"]] == [0, 2, 100, 100]


def test_who_fell_too_far_behind_gets_a_whole_picture() -> None:
    tree = Tree(4096)
    view = TreeView(tree.cache.tree, None, lambda: tree.now)
    viewer = Viewer(view)
    viewer.look()
    for i in range(MAX_LOG + 10):
        view._forget(10**9 + i)
    tree.put([1, 2, 3, 4])
    assert view.look(viewer.generation, 100, heads=False)["is_full"]


def test_a_tree_that_nobody_looks_at_any_more_is_not_watched() -> None:
    tree = Tree(4096)
    view = TreeView(tree.cache.tree, None, lambda: tree.now)
    view.look(0, 10, heads=False)
    assert tree.cache.tree.watchers == (view,)
    tree.now += UNWATCHED_S + 1
    for i in range(1100):
        tree.put([i % 900, i % 7, 3, i % 5])
    assert tree.cache.tree.watchers == ()
    assert view.look(view.generation, 10, heads=False)["is_full"]


def test_a_private_run_is_shown_without_its_tokens() -> None:
    tree = Tree()
    tree.put([1, 2, 3, 4])
    view = TreeView(tree.cache.tree, None, lambda: tree.now, shows=lambda namespace: False)
    nodes = view.look(0, 10, heads=True)["nodes"]
    assert len(nodes) == 2
    assert all("head" not in node for node in nodes)


def test_the_path_to_a_node_is_its_whole_prefix_while_it_is_there() -> None:
    tree = Tree()
    view = TreeView(tree.cache.tree, None, lambda: tree.now)
    tree.put([1, 2, 3, 4])
    tree.put([1, 2, 5, 6])
    answer = view.look(0, 10, heads=False)
    leaf = next(n for n in answer["nodes"] if n["tokens"] == 2 and n["children"] == 0)
    found = view.path(leaf["id"])
    assert found is not None
    namespace, runs = found
    assert namespace == "n"
    tokens = np.frombuffer(b"".join(key for _, key in runs), ">u4").tolist()
    assert tokens in ([1, 2, 3, 4], [1, 2, 5, 6])
    tree.cache.clear()
    assert view.path(leaf["id"]) is None
