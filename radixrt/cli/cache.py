"""The commands about the cache: ``cachesim``, ``cachetrace`` and ``explain``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radixrt.cli.client_options import ClientOptions, Endpoint
from radixrt.cli.options import with_settings
from radixrt.cli.reporting import reporting
from radixrt.errors import InvalidArgument
from radixrt.settings import Given

if TYPE_CHECKING:
    from radixrt.cache.simulator import Simulated


def register(application: Any) -> None:
    """Add the commands to the command line."""
    application.command()(cachesim)
    application.command()(cachetrace)
    application.command()(with_settings(explain, ClientOptions))


def cachesim(
    trace: Annotated[Path, typer.Argument(help="Requests, a JSON object a line.")],
    capacity: Annotated[
        list[str], typer.Option(help="Tokens of cache, such as 500k or 4M; give several.")
    ] = ["500k", "1M", "2M", "4M"],  # noqa: B006  (typer reads the default, nobody writes it)
    policy: Annotated[
        list[str] | None, typer.Option(help="What to simulate; all policies without it.")
    ] = None,
    block_tokens: Annotated[int, typer.Option(help="Tokens of a block of the trace.")] = 512,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (SVG) to this file.")] = None,
) -> None:
    """Print which share of a trace's prompt tokens the cache would have served, by policy.

    It is the runtime's cache without a model: LRU, LFU, GDSF and what the runtime does, with and
    without programs' signals if the trace has some, beside the optimum that knows the future.
    """
    with reporting():
        _simulate(trace, capacity, policy, block_tokens, plot)


def cachetrace(
    kind: Annotated[str, typer.Argument(help="conversations or agents.")],
    file: Annotated[Path, typer.Argument(help="Where the trace is written.")],
    num_requests: Annotated[int, typer.Option(help="Requests of the trace.")] = 10_000,
    between_s: Annotated[
        float, typer.Option(help="Mean seconds between two beginnings; 0 is the workload's own.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed is another trace.")] = 0,
) -> None:
    """Write a made-up trace for cachesim, of people who chat or of programs that call tools."""
    with reporting():
        _make_trace(kind, file, num_requests, between_s, seed)


def explain(
    given: dict[str, Given],
    where: Endpoint = "",
    last: Annotated[int, typer.Option(help="How many of the latest calls.")] = 16,
) -> None:
    """Say what became of the prompt tokens of a runtime's latest calls, and why some missed."""
    with reporting(), ClientOptions.of(given, where).connect() as backend:
        print(backend.explain(last))


def parse_tokens(text: str) -> int:
    """Return the number that "500k", "4M" or "4096" mean; raises ``InvalidArgument``."""
    units = {"k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
    number = text.strip().lower()
    factor = units.get(number[-1:], 1)
    try:
        tokens = round(float(number[:-1] if factor > 1 else number) * factor)
    except (ValueError, OverflowError):
        tokens = 0
    if tokens < 1:
        raise InvalidArgument("capacity", text, "use tokens, such as 500k or 4M")
    return tokens


def table(results: Sequence[Simulated]) -> str:
    """Return hit rates in per cent, a line a capacity and a column a policy."""
    from radixrt.cache.plot import in_tokens

    policies = list(dict.fromkeys(result.policy for result in results))
    rates = {(r.capacity_tokens, r.policy): f"{100 * r.hit_rate:.2f}" for r in results}
    lines = ["".join(["capacity", *(f"{policy:>13}" for policy in policies)])]
    for capacity in dict.fromkeys(result.capacity_tokens for result in results):
        row = "".join(f"{rates[capacity, policy]:>13}" for policy in policies)
        lines.append(f"{in_tokens(capacity):>8}{row}")
    return "\n".join(lines)


def _simulate(
    trace: Path,
    capacities: Sequence[str],
    policies: Sequence[str] | None,
    block_tokens: int,
    plot: Path | None,
) -> None:
    from radixrt.cache.plot import hit_rate_svg, in_tokens
    from radixrt.cache.simulator import POLICIES, simulate
    from radixrt.cache.trace import read_trace
    from radixrt.cache.workload import working_set

    requests = read_trace(trace)
    has_programs = any(request.program is not None for request in requests)
    chosen = policies or [name for name in POLICIES if has_programs or name != "signals"]
    num_tokens = sum(request.num_tokens for request in requests)
    print(
        f"{trace.name}: {sum(bool(r.blocks) for r in requests)} requests, "
        f"{in_tokens(num_tokens)} prompt tokens, working set "
        f"{in_tokens(working_set(requests, block_tokens))} tokens; token hit rate in per cent"
    )
    results = [
        simulate(requests, name, parse_tokens(capacity), block_tokens=block_tokens)
        for capacity in capacities
        for name in chosen
    ]
    print(table(results))
    if plot is not None:
        plot.write_text(hit_rate_svg(results, f"Token hit rate, {trace.name}"), encoding="utf-8")
        print(f"plot: {plot}")


def _make_trace(kind: str, file: Path, num_requests: int, between_s: float, seed: int) -> None:
    from dataclasses import replace

    from radixrt.cache.trace import write_trace
    from radixrt.cache.workload import Agents, Conversations, generate

    kinds: dict[str, Agents | Conversations] = {
        "conversations": Conversations(num_requests=num_requests, seed=seed),
        "agents": Agents(num_requests=num_requests, seed=seed),
    }
    if kind not in kinds:
        raise InvalidArgument("kind", kind, f"choose from {', '.join(kinds)}")
    workload = kinds[kind]
    if between_s > 0:
        workload = replace(workload, between_s=between_s)
    print(f"{write_trace(file, generate(workload))} lines: {workload}")
