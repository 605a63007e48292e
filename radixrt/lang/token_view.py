"""A look inside a generation: how each of its tokens came about, for terminals and notebooks."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import IO, TYPE_CHECKING, overload

from radixrt.protocol import TokenTrace

if TYPE_CHECKING:
    from rich.console import Group

_COLOURS = {"sampled": "", "forced": "#8a8a8a", "steered": "#c77800", "healed": "#3f7fbf"}
_HEADINGS = ("token", "how", "allowed", "removed", "logprob")


class TokenView(Sequence[TokenTrace]):
    """The tokens of a generation, in order. ``print`` shows a table, ``show`` one in colours.

    Each token says whether it was ``sampled``, ``forced`` (the only one possible, appended without
    sampling), ``steered`` (towards the end of the budget) or ``healed`` (it spells the end of the
    prompt again), how many tokens were allowed in its place, and the probability of all those that
    were not.
    """

    def __init__(self, tokens: Sequence[TokenTrace]) -> None:
        self.tokens = tuple(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @overload
    def __getitem__(self, index: int) -> TokenTrace: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenTrace]: ...
    def __getitem__(self, index: int | slice) -> TokenTrace | Sequence[TokenTrace]:
        return self.tokens[index]

    @property
    def summary(self) -> str:
        """One line about all tokens."""
        counts = Counter[str](token.kind for token in self.tokens)
        parts = [f"{counts[kind]} {kind}" for kind in _COLOURS if counts[kind]]
        chosen = [t for t in self.tokens if t.kind != "forced"]
        removed = sum(token.removed_mass for token in chosen) / max(len(chosen), 1)
        return (
            f"{len(self.tokens)} tokens: {', '.join(parts) or 'none'}; "
            f"the mask removed {removed:.1%} of the probability on average"
        )

    def __str__(self) -> str:
        rows = [_HEADINGS, *(_row(token) for token in self.tokens)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, self.summary])

    __repr__ = __str__

    def show(self, file: IO[str] | None = None) -> None:
        """Print the table, in colours where rich is installed."""
        with contextlib.suppress(ImportError):
            from rich.console import Console

            Console(file=file, highlight=False).print(self)
            return
        print(self, file=file or sys.stdout)

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for column, heading in enumerate(_HEADINGS):
            table.add_column(heading, justify="left" if column < 2 else "right")
        for token in self.tokens:
            style = _COLOURS[token.kind] or "default"
            table.add_row(*(Text(cell, style=style) for cell in _row(token)))
        return Group(table, Text(self.summary))

    def _repr_html_(self) -> str:
        """The text, each token with a tooltip; the darker, the more the mask removed."""
        spans = "".join(_span(token) for token in self.tokens)
        return (
            f'<pre style="white-space:pre-wrap">{spans}</pre>'
            f'<div style="color:#888">{escape(self.summary)}</div>'
        )


def _row(token: TokenTrace) -> tuple[str, ...]:
    return (
        repr(token.text),
        token.kind,
        f"{token.allowed:,}",
        f"{token.removed_mass:.3f}",
        f"{token.logprob:.3f}",
    )


def _span(token: TokenTrace) -> str:
    rules = [f"background:rgba(220,80,60,{0.5 * token.removed_mass:.2f})"]
    if _COLOURS[token.kind]:
        rules.append(f"color:{_COLOURS[token.kind]}")
    title = (
        f"{token.kind}: {token.allowed:,} allowed, {token.removed_mass:.1%} removed, "
        f"logprob {token.logprob:.3f}"
    )
    return f'<span style="{";".join(rules)}" title="{title}">{escape(token.text)}</span>'
