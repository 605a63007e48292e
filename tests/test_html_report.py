"""Reports as HTML: whole, by themselves, with what they were given and nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixrt.errors import InvalidArgument
from radixrt.html_report import (
    NUM_BINS,
    Distribution,
    Rows,
    Timeline,
    TokenBars,
    ValueBars,
    check_path,
    quantile,
    render,
)

VOID = {"meta"}


class Checker(HTMLParser):
    """Every tag is closed in order; gathers texts and what tags there are."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_report_is_one_whole_document_that_loads_nothing() -> None:
    sections = [
        TokenBars("Tokens", [("all", {"cached": 30, "computed": 10, "generated": 5})]),
        ValueBars("Rates", [("a", 2.0, "2 tok/s")]),
        Distribution("Latency", [0.1, 0.2, 0.4], "s"),
        Timeline("Throughput", [(0.5, 10), (1.0, 30)], "tokens/s"),
        Rows("Slowest", ("row", "seconds"), [("1", "0.40"), ("2", "0.20")]),
    ]
    document = render("A batch", {"rows": "3"}, sections)
    page = Checker(document)
    text = " ".join(page.texts)
    for told in ("A batch", "75.0% of prompts cached", "2 tok/s", "median", "0.40", "40 tokens/s"):
        assert told in text
    assert page.tags.count("section") == 5
    assert "script" not in page.tags
    assert not re.search(r"(\bsrc=|href|url\(|http:)", document)
    assert "default-src 'none'" in document


def test_sections_without_anything_in_them_are_left_out() -> None:
    empty = [
        TokenBars("t", [("all", {})]),
        ValueBars("v", []),
        Distribution("d", [], "s"),
        Timeline("l", [], "x"),
        Rows("r", ("a",), []),
    ]
    assert "section" not in Checker(render("x", {}, empty)).tags


@given(st.text(), st.text())
def test_what_rows_contain_is_shown_as_text(cell: str, title: str) -> None:
    document = render(title, {title: cell}, [Rows(title, (title,), [(cell,)])])
    assert set(Checker(document).tags) <= {
        *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "dl"),
        *("div", "dt", "dd", "main", "section", "table", "thead", "tbody", "tr", "th", "td"),
    }


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_quantiles_are_values_and_bound_their_share(values: list[float]) -> None:
    values.sort()
    for share in (0.0, 0.5, 0.95, 1.0):
        found = quantile(values, share)
        assert found in values
        assert sum(value <= found for value in values) >= share * len(values)
    Checker(render("x", {}, [Distribution("d", values, "s")]))


def test_a_distribution_of_one_value_is_one_column() -> None:
    document = render("x", {}, [Distribution("d", [2.0] * 7, "s")])
    assert document.count('<rect class="value"') == 1
    many = render("x", {}, [Distribution("d", [float(i) for i in range(1000)], "s")])
    assert many.count('<rect class="value"') == NUM_BINS


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    assert check_path("report", tmp_path / "a.html") == tmp_path / "a.html"
    for path in (tmp_path, tmp_path / "none" / "a.html"):
        with pytest.raises(InvalidArgument, match="report="):
            check_path("report", path)
