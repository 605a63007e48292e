"""Where a growing text ends, whatever the pieces it grows by."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixrt.errors import InvalidArgument
from radixrt.runtime.frontend.stops import StopMatcher, compile_patterns

text = st.text(alphabet="abST ", max_size=30)


@settings(max_examples=200, deadline=None)
@given(
    whole=text,
    stops=st.lists(st.text(alphabet="abST ", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_what_was_safe_to_send_is_never_taken_back(
    whole: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopMatcher(stops, ())
    sent, seen = 0, 0
    for cut in [*sorted(cuts), len(whole)]:
        grown = whole[:cut]
        match = matcher.search(grown, seen)
        if match is not None:
            assert match.start >= sent
            assert match.start == min(grown.find(s) for s in stops if s in grown)
            return
        seen = len(grown)
        safe = matcher.safe_len(grown)
        assert safe >= sent
        sent = safe
    assert not any(stop in whole for stop in stops)


@pytest.mark.parametrize(
    ("pattern", "held"), [(r"\d{3}-\d", "call 123"), (r"END\b", "the EN"), (r"x+y", "axx")]
)
def test_the_beginning_of_a_patterns_match_is_held_back(pattern: str, held: str) -> None:
    matcher = StopMatcher((), compile_patterns([pattern]))
    assert matcher.search(held, 0) is None
    assert matcher.safe_len(held) < len(held)
    assert matcher.safe_len("quiet ") == len("quiet ")


@pytest.mark.parametrize("pattern", ["(", "*", "x" * 5000, "a*", "(?P<n>", r"\1"])
def test_what_is_no_usable_pattern_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(InvalidArgument, match="stop_regex"):
        compile_patterns([pattern])


def test_a_search_that_explodes_is_cut_off() -> None:
    matcher = StopMatcher((), compile_patterns([r"(?:a|a?)+(?:a|a?)+b\b"]))
    slow = "a" * 300
    try:
        matcher.search(slow, 0)
    except InvalidArgument as error:
        assert "simpler pattern" in str(error)  # noqa: PT017 - it may also be fast enough
