"""Token hit rate by eviction policy, on the runtime's own tree and policy code, without a model.

python benchmarks/cache_policy.py TRACE [TRACE ...]    # traces as ``radixrt cachesim`` reads them
python benchmarks/cache_policy.py                      # the generated agent workload alone

On each trace, at 0.5 to 16 million tokens: what the runtime does (``learned``) beside LRU, LFU (by
uses while cached, and by those of all time), GDSF and Belady's optimum; which cells are at
or above the best classic policy less 0.5 point, and how far it ever is below LRU. Then the agent
workload of ``radixrt.cache.workload``: how much of the distance from LRU to the optimum programs'
signals close in a cache of half the working set, and what shuffled hints cost.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from radixrt.cache.plot import hit_rate_svg, in_tokens
from radixrt.cache.simulator import CLASSIC, Simulated, simulate
from radixrt.cache.trace import TraceRequest, read_trace, shuffled_hints
from radixrt.cache.workload import Agents, generate, working_set
from radixrt.cli.cache import parse_tokens, table

CAPACITIES = ("500k", "1M", "2M", "4M", "8M", "16M")


def classic_cells(path: Path, capacities: Sequence[str], plot: Path | None) -> dict[str, Any]:
    """Print and return the hit rates of one trace, in per cent."""
    trace = read_trace(path)
    started = time.perf_counter()
    results = [
        simulate(trace, policy, parse_tokens(capacity))
        for capacity in capacities
        for policy in (*CLASSIC, "learned", "optimum")
    ]
    rates: dict[int, dict[str, float]] = {}
    for result in results:
        rates.setdefault(result.capacity_tokens, {})[result.policy] = 100 * result.hit_rate
    above_lru = min(cell["learned"] - cell["lru"] for cell in rates.values())
    cells = {
        in_tokens(capacity): cell["learned"] - max(cell[policy] for policy in CLASSIC)
        for capacity, cell in rates.items()
    }
    num_good = sum(distance >= -0.5 for distance in cells.values())
    print(f"{path.name}: {len(trace)} requests, {time.perf_counter() - started:.0f} s")
    print(table(results))
    print(
        f"learned is at or above the best classic policy less 0.5 point in {num_good} of "
        f"{len(cells)} cells, and never more than {max(-above_lru, 0.0):.2f} points below LRU\n"
    )
    if plot is not None:
        write_plot(plot / f"{path.stem}.svg", results, path.name)
    return {"trace": path.name, "per_cent": rates, "best_classic_distance": cells}


def signals(num_requests: int, seed: int, plot: Path | None) -> dict[str, Any]:
    """Print and return what programs' signals are worth on the agent workload."""
    workload = Agents(num_requests=num_requests, seed=seed)
    trace = generate(workload)
    capacity = working_set(trace) // 2
    results = [
        simulate(trace, policy, capacity)
        for policy in ("lru", "gdsf", "learned", "signals", "optimum")
    ]
    rates = {result.policy: 100 * result.hit_rate for result in results}
    shuffled: list[TraceRequest] = list(shuffled_hints(trace, seed + 1))
    rates["shuffled"] = 100 * simulate(shuffled, "signals", capacity).hit_rate
    gap = rates["optimum"] - rates["lru"]
    closed = (rates["signals"] - rates["lru"]) / gap
    print(f"agents, seed {seed}: {workload}")
    print(f"cache: {in_tokens(capacity)} tokens, half the working set")
    print("  ".join(f"{name} {rate:.2f}" for name, rate in rates.items()))
    print(
        f"signals close {100 * closed:.0f} % of the distance from LRU to the optimum; shuffled "
        f"hints cost {rates['lru'] - rates['shuffled']:+.2f} points against LRU, "
        f"{rates['learned'] - rates['shuffled']:+.2f} against none\n"
    )
    if plot is not None:
        write_plot(plot / f"agents-{seed}.svg", results, f"agents, seed {seed}")
    return {
        "workload": asdict(workload),
        "capacity": capacity,
        "per_cent": rates,
        "closed": closed,
    }


def write_plot(path: Path, results: Sequence[Simulated], name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(hit_rate_svg(results, f"Token hit rate, {name}"), encoding="utf-8")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", type=Path, nargs="*")
    parser.add_argument("--capacity", nargs="*", default=CAPACITIES)
    parser.add_argument("--agent-requests", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--plots", type=Path, help="write an SVG a trace to this directory")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "traces": [classic_cells(path, options.capacity, options.plots) for path in options.traces],
        "signals": [signals(options.agent_requests, seed, options.plots) for seed in options.seeds],
    }
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
