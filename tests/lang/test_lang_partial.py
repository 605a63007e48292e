"""JSON read while it is written, against ``json`` on every prefix."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixrt.lang.partial import MISSING, Node, PartialJson

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
TEXTS = st.builds(
    lambda value, indent, ascii_only: json.dumps(value, indent=indent, ensure_ascii=ascii_only),
    VALUES,
    st.sampled_from([None, 2]),
    st.booleans(),
)


def read(*pieces: str) -> PartialJson:
    parser = PartialJson()
    for piece in pieces:
        parser.feed(piece)
    return parser


def complete_nodes(node: Node, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    found = {path: node.plain()} if node.is_complete else {}
    for key, item in node.items.items():
        found |= complete_nodes(item, (*path, key))
    return found


@given(TEXTS)
def test_the_whole_is_what_json_reads(text: str) -> None:
    parser = read(text)
    parser.end()
    assert parser.root.plain() == json.loads(text)
    assert parser.is_complete


@given(TEXTS, st.data())
def test_pieces_make_no_difference(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    ends = [*cuts, len(text)]
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], ends, strict=True)]
    assert read(*pieces).root.plain() == read(text).root.plain()


@given(TEXTS)
def test_after_every_prefix_what_is_final_is_as_in_the_end_and_the_rest_a_beginning(
    text: str,
) -> None:
    parser, final = PartialJson(), json.loads(text)
    known: dict[tuple[Any, ...], Any] = {}
    for char in text:
        parser.feed(char)
        now = complete_nodes(parser.root)
        assert known.items() <= now.items()
        known = now
        for path, value in now.items():
            there = final
            for key in path:
                there = there[key]
            assert value == there
        assert begins(parser.root, final)
    assert parser.is_complete == isinstance(final, str | list | dict)


def begins(node: Node, final: Any) -> bool:
    """Whether a node shows nothing that is not in the end."""
    if node.kind == "object":
        return isinstance(final, dict) and all(begins(n, final[k]) for k, n in node.items.items())
    if node.kind == "array":
        return isinstance(final, list) and all(begins(n, final[k]) for k, n in node.items.items())
    if node.kind == "string":
        return isinstance(final, str) and final.startswith(node.value)
    return node.value is MISSING or node.value == final


def test_a_number_appears_when_it_is_over() -> None:
    assert read('{"a": 12').root.plain() == {}
    assert read('{"a": 12,').root.plain() == {"a": 12}
    with pytest.raises(ValueError, match="cut short"):
        read('{"a": 1').end()


def test_half_a_character_waits_for_its_other_half() -> None:
    assert read('"a\\ud83d').root.plain() == "a"
    assert read('"a\\ud83d\\ude00').root.plain() == "a\U0001f600"


@pytest.mark.parametrize(
    "text",
    ["x", "]", "[1 2]", '{"a" 1}', '{"a":1,}', "[,", "[1}", '{"a":1]', '"\\x', '"\\u00g', '"\n'],
)
def test_what_is_no_beginning_of_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read(text).end()


@pytest.mark.parametrize(
    "text", ["nul ", "01 ", "1.e ", "-- ", "NaN ", "-Infinity ", "[1,]", "1 1", "{} {}"]
)
def test_a_scalar_that_is_none_is_refused_when_it_is_over(text: str) -> None:
    with pytest.raises(ValueError):
        read(text).end()
