"""Hashes of prefixes, and the memory of evicted pages."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from radixrt.cache.history import Eviction, PageHistory
from radixrt.cache.node import encode
from radixrt.cache.pagehash import PageHash

page_sizes = st.sampled_from([1, 3, 16])
tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=70)


@given(page_size=page_sizes, ids=tokens, cut=st.integers(0, 70))
def test_a_chain_continues_where_another_ended(page_size: int, ids: list[int], cut: int) -> None:
    hashes = PageHash(page_size)
    key = encode(np.array(ids, np.int32))
    start = hashes.seed("model")
    whole = hashes.chain(start, key).tolist()
    cut = min(cut, len(ids) // page_size) * page_size * 4
    front = hashes.chain(start, key[:cut]).tolist() if cut else []
    before = front[-1] if front else start
    rest = hashes.chain(before, key[cut:]).tolist() if key[cut:] else []
    assert front + rest == whole


@given(page_size=page_sizes, ids=tokens, at=st.integers(0, 69), other=st.integers(1, 2**30))
def test_a_changed_token_changes_its_page_and_all_behind_it(
    page_size: int, ids: list[int], at: int, other: int
) -> None:
    at %= len(ids)
    changed = [*ids]
    changed[at] = (changed[at] + other) % 2**31
    hashes = PageHash(page_size)
    one, two = (
        hashes.chain(hashes.seed("m"), encode(np.array(i, np.int32))) for i in (ids, changed)
    )
    same = (one == two).tolist()
    assert same == [page < at // page_size for page in range(len(same))]


def test_namespaces_have_hashes_of_their_own() -> None:
    hashes = PageHash(4)
    key = encode(np.arange(8, dtype=np.int32))
    one, two = (hashes.chain(hashes.seed(name), key) for name in ("a", "b"))
    assert not (one == two).any()


@given(ids=tokens, key=st.integers(0, 2**64 - 1), uses=st.integers(1, 255))
def test_one_record_is_the_same_as_many(ids: list[int], key: int, uses: int) -> None:
    one, many = PageHistory(1 << 10), PageHistory(1 << 10)
    keys = np.append(PageHash(1).chain(key, encode(np.array(ids, np.int32))), np.uint64(key))
    for each in keys.tolist():
        one.note_one(each, uses, 1, 5.0, -7)
    many.note(keys, bytes([uses]) * len(keys), 1, 5.0, -7)
    assert one.uses(keys).tolist() == many.uses(keys).tolist()
    assert [one.uses_of(each) for each in keys.tolist()] == many.uses(keys).tolist()
    assert one.evictions(keys) == many.evictions(keys)
    assert [one.evictions(keys[i : i + 1])[0] for i in range(len(keys))] == many.evictions(keys)
    assert many.uses_of(key) == uses


def test_an_eviction_is_remembered_until_its_place_is_needed() -> None:
    history = PageHistory(1 << 10)
    hashes = PageHash(1)
    keys = hashes.chain(1, encode(np.arange(20, dtype=np.int32)))
    history.note(keys, bytes(range(1, 21)), tier=1, when=5.0, whom=7)
    assert history.uses(keys).tolist() == list(range(1, 21))
    assert set(history.evictions(keys)) == {Eviction("host", 5.0, 7)}
    others = hashes.chain(2, encode(np.arange(30_000, dtype=np.int32)))
    assert history.evictions(others[:3]) == [None, None, None]
    size = history.num_bytes
    history.note(others, bytes(30_000), tier=0, when=6.0, whom=8)
    assert history.num_bytes == size
    assert history.uses(keys).tolist() == [0] * 20
