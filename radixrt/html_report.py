"""Reports as one HTML file: no script, nothing loaded from elsewhere, light and dark.

``run_batch(report=…)`` and ``radixrt bench --html`` write theirs with it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from radixrt.errors import InvalidArgument

SOURCES = ("cached", "computed", "generated", "forced")
"""Where tokens come from, in the order of bars."""

NUM_BINS = 40
_WIDTH, _HEIGHT = 640, 150


@dataclass(frozen=True, slots=True)
class TokenBars:
    """A bar a row, split into tokens by source."""

    title: str
    rows: Sequence[tuple[str, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class ValueBars:
    """A bar a row; ``rows`` are (label, value, what is written beside it)."""

    title: str
    rows: Sequence[tuple[str, float, str]]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How often values of so much came, with their median and quantiles."""

    title: str
    values: Sequence[float]
    unit: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Sums over time: ``events`` are (seconds from the beginning, amount); shown a second."""

    title: str
    events: Sequence[tuple[float, float]]
    unit: str


@dataclass(frozen=True, slots=True)
class Rows:
    """A table; columns whose cells are all numbers are set to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


Section = TokenBars | ValueBars | Distribution | Timeline | Rows


def check_path(argument: str, path: str | Path) -> Path:
    """Return where a report is to go; ``InvalidArgument`` before any work is done for one that
    could not be written."""
    target = Path(path)
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise InvalidArgument(argument, str(path), "name a file in a directory that there is")
    return target


def render(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """Return the document. ``facts`` are shown beneath the title; empty sections are left out."""
    told = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items()
    )
    body = "".join(_section(section) for section in sections)
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{_text(title)}</h1><p>radixrt · {_text(when)}</p></header>"
        f"<dl>{told}</dl><main>{body}</main></body></html>\n"
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of the sorted ``values`` do not exceed."""
    return values[min(len(values) - 1, max(0, math.ceil(share * len(values)) - 1))]


def _section(section: Section) -> str:
    match section:
        case TokenBars():
            body = _token_bars(section)
        case ValueBars():
            body = _value_bars(section)
        case Distribution():
            body = _distribution(section)
        case Timeline():
            body = _timeline(section)
        case Rows():
            body = _table(section)
    return f"<section><h2>{_text(section.title)}</h2>{body}</section>" if body else ""


def _token_bars(section: TokenBars) -> str:
    most = max((sum(parts.values()) for _, parts in section.rows), default=0)
    if most <= 0:
        return ""
    legend = "".join(f'<span><i class="{name}"></i>{name}</span>' for name in SOURCES)
    lines = []
    for label, parts in section.rows:
        bars, at = [], 0.0
        for name in SOURCES:
            width = 100 * parts.get(name, 0) / most
            if width:
                told = f"{name} {parts[name]:,.0f}"
                bars.append(
                    f'<rect class="{name}" x="{at:.3f}%" width="{width:.3f}%" height="16">'
                    f"<title>{told}</title></rect>"
                )
            at += width
        total = sum(parts.values())
        prompt = parts.get("cached", 0) + parts.get("computed", 0)
        hit = f", {parts.get('cached', 0) / prompt:.1%} of prompts cached" if prompt else ""
        lines.append(
            f'<div class="bar"><span>{_text(label)}</span>'
            f'<svg width="100%" height="16">{"".join(bars)}</svg>'
            f"<span>{total:,.0f} tokens{hit}</span></div>"
        )
    return f'<p class="legend">{legend}</p>{"".join(lines)}'


def _value_bars(section: ValueBars) -> str:
    most = max((value for _, value, _ in section.rows), default=0.0)
    if most <= 0:
        return ""
    return "".join(
        f'<div class="bar"><span>{_text(label)}</span><svg width="100%" height="16">'
        f'<rect class="value" width="{100 * value / most:.3f}%" height="16"/></svg>'
        f"<span>{_text(told)}</span></div>"
        for label, value, told in section.rows
    )


def _distribution(section: Distribution) -> str:
    values = sorted(section.values)
    if not values:
        return ""
    low, high = values[0], values[-1]
    size = (high - low) / NUM_BINS or 1.0
    counts = [0] * NUM_BINS
    for value in values:
        counts[min(NUM_BINS - 1, int((value - low) / size))] += 1
    marks = []
    for share, name in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %")):
        value = quantile(values, share)
        x = _WIDTH * min(1.0, (value - low) / (size * NUM_BINS))
        marks.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}" class="mark">'
            f"<title>{name}: {_number(value)} {_text(section.unit)}</title></line>"
        )
    told = " · ".join(
        f"{name} <b>{_number(quantile(values, share))}</b>"
        for share, name in ((0.0, "least"), (0.5, "median"), (0.95, "95 %"), (1.0, "most"))
    )
    axis = (
        f"<p class=axis><span>{_number(low)}</span><span>{_number(high)} {section.unit}</span></p>"
    )
    return f"<p>{told} {_text(section.unit)}</p>{_columns(counts, ''.join(marks))}{axis}"


def _timeline(section: Timeline) -> str:
    if not section.events:
        return ""
    last = max(at for at, _ in section.events)
    size = last / NUM_BINS or 1.0
    sums = [0.0] * NUM_BINS
    for at, amount in section.events:
        sums[min(NUM_BINS - 1, int(at / size))] += amount
    total = sum(amount for _, amount in section.events)
    mean = f"{_number(total / last if last else total)} {_text(section.unit)} on average"
    rates = [amount / size for amount in sums]
    axis = _axis("0 s", f"{_number(last)} s")
    return f"<p>{mean}, {_number(max(rates))} at most</p>{_columns(rates)}{axis}"


def _axis(low: str, high: str) -> str:
    return f"<p class=axis><span>{_text(low)}</span><span>{_text(high)}</span></p>"


def _columns(values: Sequence[float], marks: str = "") -> str:
    most = max(values) or 1.0
    step = _WIDTH / len(values)
    bars = "".join(
        f'<rect class="value" x="{i * step:.1f}" y="{_HEIGHT * (1 - value / most):.1f}" '
        f'width="{step - 1:.1f}" height="{_HEIGHT * value / most:.1f}">'
        f"<title>{_number(value)}</title></rect>"
        for i, value in enumerate(values)
        if value
    )
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none">'
        f"{bars}{marks}</svg>"
    )


def _table(section: Rows) -> str:
    if not section.rows:
        return ""
    head = "".join(f"<th>{_text(name)}</th>" for name in section.columns)
    numeric = [all(_is_number(row[i]) for row in section.rows) for i in range(len(section.columns))]
    lines = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=num' if numeric[i] else ''}>{_text(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in section.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").replace("%", "").replace("-", "").isdigit()


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _text(text: str) -> str:
    return html.escape(text)


STYLE = """
:root{--bg:#f5f6f8;--panel:#fff;--line:#dfe3e8;--text:#1b222c;--muted:#667080;--cached:#16967f;
--computed:#9aa4b1;--generated:#4666e0;--forced:#d2588e;--value:#3d93cc}
@media(prefers-color-scheme:dark){:root{--bg:#0c1015;--panel:#141a21;--line:#252d37;--text:#e4eaf1;
--muted:#8894a4;--cached:#23a58d;--computed:#6a7686;--generated:#6d8bff;--forced:#e67bab;
--value:#57acdf}}
*{box-sizing:border-box}body{margin:0 auto;padding:24px;max-width:1100px;background:var(--bg);
color:var(--text);font:14px/1.5 system-ui,"Segoe UI","DejaVu Sans",sans-serif}
h1{margin:0;font-size:22px;letter-spacing:-.01em}h2{margin:0 0 8px;font-size:12px;
text-transform:uppercase;letter-spacing:.06em;color:var(--muted)}p{margin:0 0 8px}
header p,.axis{color:var(--muted);font-size:12px}
dl{display:flex;flex-wrap:wrap;gap:10px;margin:16px 0}dl div{background:var(--panel);
border:1px solid var(--line);border-radius:10px;padding:8px 14px;min-width:110px}
dt{color:var(--muted);font-size:11.5px}dd{margin:0;font-size:17px;font-weight:600;
font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
main{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:12px}
section{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:14px 16px;
overflow:auto}section:has(table),section:has(.bar){grid-column:1/-1}
.chart{width:100%;height:150px;display:block}.axis{display:flex;justify-content:space-between}
.mark{stroke:var(--text);stroke-width:1.5;stroke-dasharray:3 3;opacity:.6}
.bar{display:grid;grid-template-columns:minmax(90px,16%) 1fr minmax(170px,30%);gap:12px;
align-items:center;margin:4px 0;font-variant-numeric:tabular-nums}
.bar span:last-child{color:var(--muted);font-size:12.5px}
.bar svg{border-radius:4px;background:var(--bg)}
.legend{display:flex;gap:14px;color:var(--muted);font-size:12px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
.cached{fill:var(--cached);background:var(--cached)}
.computed{fill:var(--computed);background:var(--computed)}
.generated{fill:var(--generated);background:var(--generated)}
.forced{fill:var(--forced);background:var(--forced)}.value{fill:var(--value)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{text-align:left;white-space:nowrap;color:var(--muted);font-weight:500;font-size:12px}
th,td{padding:4px 14px 4px 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:anywhere}td.num{text-align:right;white-space:nowrap}
@media(max-width:760px){main{grid-template-columns:1fr}}
"""
