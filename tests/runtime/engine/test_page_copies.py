"""Copies of pages in runs: the same as one after the other."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from radixrt.runtime.scheduling.plan import PageCopy, copied_at_once

NUM_PAGES, PAGE_SIZE = 6, 3
pages = st.integers(0, NUM_PAGES - 1)
copies = st.lists(st.builds(PageCopy, pages, pages, st.integers(0, PAGE_SIZE)), max_size=12)


@given(copies, st.randoms())
def test_in_which_order_a_run_is_copied_makes_no_difference(
    asked: list[PageCopy], random: Random
) -> None:
    expected = [[(page, at) for at in range(PAGE_SIZE)] for page in range(NUM_PAGES)]
    found = [list(page) for page in expected]
    for source, target, num in asked:
        expected[target][:num] = expected[source][:num]
    runs = list(copied_at_once(asked))
    assert [copy for run in runs for copy in run] == asked
    for run in runs:
        random.shuffle(run)
        for source, target, num in run:
            found[target][:num] = found[source][:num]
    assert found == expected


def test_copies_that_do_not_meet_are_one_run() -> None:
    """Also many from one page: siblings share their parent's last page."""
    asked = [PageCopy(1, 2, 3), PageCopy(1, 3, 2), PageCopy(4, 5, 1)]
    assert list(copied_at_once(asked)) == [asked]
    assert list(copied_at_once([])) == []
