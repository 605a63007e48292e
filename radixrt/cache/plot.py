"""Hit rates as a picture: a self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from radixrt.cache.simulator import Simulated

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 150, 50, 50

_COLOURS = {
    "lru": "#777777",
    "lfu": "#b07aa1",
    "lfu-history": "#d4a6c8",
    "gdsf": "#edc948",
    "learned": "#e15759",
    "signals": "#f28e2b",
    "optimum": "#4e79a7",
}


def hit_rate_svg(results: Sequence[Simulated], title: str) -> str:
    """Return a picture of hit rate over capacity, a line a policy."""
    capacities = sorted({result.capacity_tokens for result in results})
    most = max((result.hit_rate for result in results), default=0.0)
    step = 0.05 if most <= 0.4 else 0.1
    top = max(step, step * math.ceil(most / step))
    low, high = math.log(capacities[0]), math.log(capacities[-1])

    def x(capacity: int) -> float:
        share = (math.log(capacity) - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(rate: float) -> float:
        return _TOP + (1 - rate / top) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="28" font-size="15">{escape(title)}</text>',
    ]
    for line in range(round(top / step) + 1):
        rate = line * step
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(rate):.1f}" y2="{y(rate):.1f}" '
            f'stroke="#dddddd"/><text x="{_LEFT - 8}" y="{y(rate) + 4:.1f}" '
            f'text-anchor="end">{100 * rate:.0f} %</text>'
        )
    parts += [
        f'<text x="{x(capacity):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">'
        f"{in_tokens(capacity)}</text>"
        for capacity in capacities
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">tokens of cache</text>'
    )
    ends: list[tuple[float, str, str]] = []
    for policy in dict.fromkeys(result.policy for result in results):
        own = sorted((r.capacity_tokens, r.hit_rate) for r in results if r.policy == policy)
        colour = _COLOURS.get(policy, "#000000")
        points = " ".join(f"{x(capacity):.1f},{y(rate):.1f}" for capacity, rate in own)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts += [
            f'<circle cx="{x(capacity):.1f}" cy="{y(rate):.1f}" r="3" fill="{colour}">'
            f"<title>{policy}, {in_tokens(capacity)}: {100 * rate:.2f} %</title></circle>"
            for capacity, rate in own
        ]
        ends.append((y(own[-1][1]), policy, colour))
    at = -math.inf
    for height, policy, colour in sorted(ends):
        at = max(height, at + 15)  # names of lines that end close together stay readable
        parts.append(
            f'<text x="{_WIDTH - _RIGHT + 10}" y="{at + 4:.1f}" fill="{colour}">{policy}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def in_tokens(num: int) -> str:
    """Return a number of tokens as people write it: 512k, 4M."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if num >= unit:
            return f"{num / unit:.4g}{name}"
    return str(num)
