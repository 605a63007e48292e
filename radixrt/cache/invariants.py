"""What must hold of the tree at any time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from radixrt.cache.node import HASH_BYTES, NO_CHILDREN, PAGE_ID_BYTES, Node, page_ids
from radixrt.cache.tree import Tree


def check_tree(tree: Tree) -> None:
    """Raise ``AssertionError`` on the first invariant that does not hold."""
    owned: list[np.ndarray[tuple[int], np.dtype[np.int32]]] = []
    num_locked = num_leaves = 0
    for namespace, root in tree.roots.items():
        assert root.parent is None
        assert not root.pages
        assert root.key.decode("utf-8") == namespace
        assert root.children or root.locks, "an empty unlocked root stays behind"
        _check_shortcuts(tree, root)
        stack: list[Node] = [root]
        while stack:
            node = stack.pop()
            _check_children(tree, node)
            stack.extend(node.children.values())
            if node is root:
                continue
            _check_run(tree, node)
            owned.append(page_ids(node.pages))
            num_locked += node.num_pages if node.locks else 0
            num_leaves += not node.locks and not node.children
    _check_pages(tree, np.concatenate(owned) if owned else np.zeros(0, np.int32))
    assert tree.num_locked == num_locked, f"{tree.num_locked} locked pages, {num_locked} counted"
    assert len(tree.order) == num_leaves, "the eviction order holds others than unlocked leaves"


def _check_shortcuts(tree: Tree, root: Node) -> None:
    for key in tree.search.shortcuts.keys(root):
        line, node = b"", tree.search.shortcuts.find(root, key)
        while node.parent is not None:
            line, node = bytes(node.key) + line, node.parent
        assert node is root, "a shortcut into another namespace"
        assert key.startswith(line), "a shortcut to other tokens"


def _check_run(tree: Tree, node: Node) -> None:
    assert node.pages, "a node without pages"
    num_pages = len(node.pages) // PAGE_ID_BYTES
    if len(node.key) % tree.page_bytes:
        assert num_pages == 1, "a partial page inside a run"
        assert len(node.key) < tree.page_bytes
        assert not node.children, "a partial page that something continues"
    else:
        assert len(node.key) == num_pages * tree.page_bytes
    assert node.parent is not None
    assert node.end == node.parent.end + len(node.key)
    assert min(node.locks, node.parks) >= 0
    assert 0 <= node.backed <= num_pages, "more pages backed than there are"
    is_victim = not node.locks and not node.children
    assert (node.place is not None) == is_victim, "exactly the unlocked leaves are evictable"
    if node.place is not None:
        assert node.place == tree.order.place_of(node), "its place is not where its state puts it"
    if tree.known is not None:
        assert len(node.uses) == num_pages
        assert min(node.uses) > 0
        hashes = tree.known.hash.chain(node.parent.chain, node.key)
        assert np.array_equal(node.last_hashes(num_pages), hashes)
        assert len(node.hashes) == num_pages * HASH_BYTES


def _check_children(tree: Tree, node: Node) -> None:
    assert not NO_CHILDREN, "a child of every leaf"
    keys = node.children.sorted_keys()
    assert keys == sorted(node.children), "the order of the children is not that of their keys"
    for key, child in node.children.items():
        assert child.parent is node
        assert key == bytes(child.key[: tree.page_bytes])
    children = node.children.values()
    assert node.locks >= sum(child.locks > 0 for child in children), "a lock below an unlocked node"
    assert node.parks >= sum(child.parks > 0 for child in children)
    assert not node.is_ended or all(child.is_ended for child in children), "used, but ended above"
    for key, longer in pairwise(keys):
        if longer.startswith(key):
            assert node.children[key].locks, "an unlocked partial page that a longer one contains"


def _check_pages(tree: Tree, owned: np.ndarray[tuple[int], np.dtype[np.int32]]) -> None:
    assert tree.num_cached == len(owned), f"{tree.num_cached} cached pages, {len(owned)} counted"
    assert len(np.unique(owned)) == len(owned), "a page with two owners"
    assert ((owned > 0) & (owned < tree.allocator.num_pages)).all()
    assert not tree.allocator.is_free(owned).any(), "a page both cached and free"
    assert len(owned) + tree.allocator.num_free <= tree.allocator.num_usable
