"""``radixrt top``: a runtime on the terminal, with rich."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from radixrt.errors import InvalidArgument, KeysRefused, RadixError, TransportError
from radixrt.inspection import Inspection, LiveRequest, Picture, TierFill, TreeNode
from radixrt.lang.backend import Backend

RATE_S = 5.0
"""Rates are means over so many seconds."""

MAX_ROWS = 10
"""Requests, and subtrees, that are shown."""

COLOURS = {
    "device": "green", "host": "yellow", "disk": "magenta", "coalesced": "cyan",
    "computed": "bright_black", "generated": "blue", "forced": "red",
}  # fmt: skip
"""Where tokens came from, as the page shows it."""

_BAR_WIDTH = 32


class Top:
    """What is known of one runtime; ``look`` brings it up to date, ``screen`` shows it."""

    def __init__(self, backend: Backend, *, texts: bool = True) -> None:
        self._backend = backend
        self._texts = texts
        self._picture = Picture()
        self._samples: deque[Inspection] = deque()
        self._latencies: deque[Mapping[str, Any]] = deque(maxlen=2)
        self._info: Mapping[str, Any] = {}

    def look(self) -> None:
        """Ask the runtime."""
        is_more = True
        while is_more:
            answer = self._backend.inspect(self._picture.generation, texts=self._texts)
            self._picture.take(answer)
            is_more = answer.is_more
        if self._samples and self._samples[-1].epoch != answer.epoch:
            self._samples.clear()
        self._samples.append(answer)
        while len(self._samples) > 2 and self._samples[0].now < answer.now - RATE_S:
            self._samples.popleft()
        self._info = self._backend.get_server_info()

    def screen(self) -> RenderableType:
        """Return everything, to be printed."""
        now, before = self._samples[-1], self._samples[0]
        return Group(
            self._head(now, before),
            _tiers(now.tiers),
            _requests(now),
            self._hottest(now),
        )

    def _head(self, now: Inspection, before: Inspection) -> RenderableType:
        span_s = max(now.now - before.now, 1e-3)
        totals, old = now.totals, before.totals
        generated = (totals.sampled + totals.forced - old.sampled - old.forced) / span_s
        prompt = (totals.prompt - old.prompt) / span_s
        recent = totals.prompt - old.prompt
        hit = (totals.cached - old.cached) / recent if recent else None
        table = Table.grid(padding=(0, 3), expand=False)
        for _ in range(6):
            table.add_column(no_wrap=True)
        table.add_row(
            _figure(f"{generated:,.0f}", "generated tokens/s"),
            _figure(f"{prompt:,.0f}", "prompt tokens/s"),
            _figure("-" if hit is None else f"{hit:.1%}", "hit rate"),
            _figure(f"{totals.cached / totals.prompt:.1%}" if totals.prompt else "-", "in all"),
            _figure(f"{now.num_running}", "running"),
            _figure(f"{now.num_waiting}", "waiting"),
        )
        histograms = self._info.get("histograms", {})
        table.add_row(
            _figure(_quantiles(histograms.get("ttft_s")), "first token"),
            _figure(_quantiles(histograms.get("itl_s")), "between tokens"),
            _figure(f"{totals.calls:,}", "calls"),
            _figure(f"{totals.evicted_pages:,}", "evicted pages"),
            _figure(f"{now.num_clients}", "clients"),
            _figure(f"{sum(client.branches for client in now.clients)}", "branches"),
        )
        return Panel(table, title=f"radixrt · {now.model}", title_align="left", box=box.ROUNDED)

    def _hottest(self, now: Inspection) -> RenderableType:
        table = Table(box=box.SIMPLE_HEAD, expand=True, title="Hottest subtrees", title_style="")
        for name in ("uses", "tokens", "below", "used"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("tier", no_wrap=True)
        table.add_column("begins with", no_wrap=True, ratio=1)
        for node, below in hottest(self._picture, MAX_ROWS):
            idle_s = now.now - node.used if node.used is not None else None
            table.add_row(
                str(node.uses) if node.uses else "-",
                f"{node.tokens:,}",
                f"{below:,}",
                "in use" if node.locked else "-" if idle_s is None else f"{max(0, idle_s):.0f} s",
                Text(node.tier, COLOURS[node.tier]),
                Text(_one_line(node.text) if node.text is not None else "-", overflow="ellipsis"),
            )
        return table


def hottest(picture: Picture, num: int) -> list[tuple[TreeNode, int]]:
    """Return the first runs of the subtrees that were used most, and the tokens below each."""
    below: dict[int, int] = {}
    for node in sorted(picture.nodes.values(), key=lambda n: -_depth(picture, n)):
        below[node.id] = below.get(node.id, 0) + node.tokens
        below[node.parent] = below.get(node.parent, 0) + below[node.id]
    roots = {node.id for node in picture.nodes.values() if node.parent == 0}
    tops = [n for n in picture.nodes.values() if n.parent in roots]
    tops.sort(key=lambda n: (n.locked, n.uses, n.used or 0.0, below[n.id]), reverse=True)
    return [(node, below[node.id]) for node in tops[:num]]


def run_top(connect: Callable[[], Backend], *, every_s: float, once: bool, texts: bool) -> None:
    """Show the runtime that ``connect`` reaches until interrupted, or once as plain text.

    Raises what ``connect`` does, but ``RuntimeUnavailable`` with ``once`` alone: a runtime that
    goes away is waited for.
    """
    if once:
        with connect() as backend:
            top = Top(backend, texts=texts)
            top.look()
            time.sleep(min(every_s, 1.0))
            top.look()
            Console(no_color=True, highlight=False, soft_wrap=False).print(top.screen())
        return
    with Live(Text("connecting…"), screen=True, auto_refresh=False) as live:
        while True:
            try:
                with connect() as backend:
                    top = Top(backend, texts=texts)
                    while True:
                        top.look()
                        live.update(top.screen(), refresh=True)
                        time.sleep(every_s)
            except (InvalidArgument, KeysRefused):
                raise
            except TransportError as error:
                live.update(Panel(Text(f"{error}; trying again", "red")), refresh=True)
                time.sleep(1.0)
            except RadixError as error:
                live.update(Panel(Text(str(error), "red")), refresh=True)
                time.sleep(every_s)
            except KeyboardInterrupt:
                return


def _tiers(tiers: Sequence[TierFill]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for tier in tiers:
        used = tier.tokens + tier.running
        share = min(1.0, used / tier.capacity) if tier.capacity else 0.0
        colour = COLOURS.get(tier.name, "magenta")
        table.add_row(
            Text(tier.name, colour),
            ProgressBar(total=1.0, completed=share, width=_BAR_WIDTH, complete_style=colour),
            f"{share:4.0%}" if tier.capacity else "",
            f"{used:,} of {tier.capacity:,} tokens" if tier.capacity else f"{used:,} tokens",
            f"{tier.locked:,} in use, {tier.running:,} being written" if tier.running else "",
        )
    return Panel(table, title="tiers", title_align="left", box=box.ROUNDED)


def _requests(now: Inspection) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, expand=True, title="Running programs", title_style="")
    table.add_column("client", no_wrap=True)
    table.add_column("branch", justify="right")
    table.add_column("op")
    table.add_column("state")
    for name in ("prompt", "hit", "out"):
        table.add_column(name, justify="right")
    table.add_column("tokens by source", no_wrap=True, ratio=1)
    for request in now.requests[:MAX_ROWS]:
        hit = request.device + request.host + request.disk + request.coalesced
        table.add_row(
            request.client or "-",
            str(request.branch),
            request.op,
            request.state,
            f"{request.prompt:,}",
            f"{hit:,}",
            f"{request.generated + request.forced:,}",
            _split(request),
        )
    hidden = now.num_running + now.num_waiting - min(len(now.requests), MAX_ROWS)
    if not now.requests:
        table.add_row("-", "", "", "nothing runs")
    elif hidden > 0:
        table.add_row("…", "", "", f"{hidden:,} more")
    return table


def _split(request: LiveRequest) -> Text:
    """A bar of one character a share of the request's tokens, by where they came from."""
    counts = {name: int(getattr(request, name)) for name in COLOURS}
    total = max(1, request.prompt + request.generated + request.forced)
    bar = Text()
    for name, count in counts.items():
        bar.append("█" * round(_BAR_WIDTH * count / total), COLOURS[name])
    return bar


def _quantiles(histogram: Mapping[str, Any] | None) -> str:
    """Return the median and the 95th percentile of a histogram, as its buckets tell them."""
    counts = histogram["counts"] if histogram is not None else []
    total = sum(counts)
    if histogram is None or not total:
        return "-"
    told = []
    for share in (0.5, 0.95):
        seen = 0
        for bound, count in zip([*histogram["bounds"], None], counts, strict=True):
            seen += count
            if seen >= share * total:
                told.append("more" if bound is None else _duration(bound))
                break
    return " / ".join(f"≤{one}" for one in told)


def _duration(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{1000 * seconds:g} ms"


def _depth(picture: Picture, node: TreeNode) -> int:
    depth, at = 0, node.parent
    while at in picture.nodes:
        depth, at = depth + 1, picture.nodes[at].parent
    return depth


def _figure(value: str, name: str) -> Text:
    return Text.assemble((value, "bold"), (f" {name}", "bright_black"))


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else " " for c in text)
