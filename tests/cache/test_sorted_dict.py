"""The dict that knows the order of its keys."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixrt.cache import sorted_dict
from radixrt.cache.sorted_dict import SortedDict

keys = st.binary(max_size=2)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_dict, "_BLOCK_LEN", 4)


@given(st.lists(st.tuples(st.booleans(), keys), max_size=80), keys)
def test_order_and_neighbours_are_those_of_a_sorted_list(
    changes: list[tuple[bool, bytes]], probe: bytes
) -> None:
    ours: SortedDict[bytes, int] = SortedDict()
    plain: dict[bytes, int] = {}
    for i, (is_insert, key) in enumerate(changes):
        if is_insert:
            ours[key] = plain[key] = i
        elif key in plain:
            del ours[key], plain[key]
    order = sorted(plain)
    at = bisect_left(order, probe)
    assert ours == plain
    assert ours.sorted_keys() == order
    assert ours.first() == (plain[order[0]] if order else None)
    assert ours.neighbours(probe) == (
        order[at - 1] if at else None,
        order[at] if at < len(order) else None,
    )


def test_deleting_an_absent_key_raises_and_changes_nothing() -> None:
    ours: SortedDict[bytes, int] = SortedDict()
    ours[b"a"] = 1
    with pytest.raises(KeyError):
        del ours[b"b"]
    assert ours.sorted_keys() == [b"a"]
