"""Random operations on the tiers, with copies that end late, in any order, or fail.

    python benchmarks/hicache_stress.py --operations 1000000

No page may be lost, locked for good or wrong, and no allocation may fail while enough is evictable;
the first violation ends the run with an error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hicache_machine import HiCacheMachine


def main() -> None:
    """Run machines of several sizes and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--check-every", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        num_pages, host_pages = 40 + 10 * seed, (30, 120, 400)[seed % 3]
        machine = HiCacheMachine(seed, num_pages=num_pages, host_pages=host_pages)
        begin = time.perf_counter()
        for index in range(options.operations // options.seeds):
            machine.step()
            if index % options.check_every == 0:
                machine.check()
            if index % (50 * options.check_every) == 0:
                machine.check_contents()
        machine.finish()
        counters = machine.tiers.counters
        row = {
            "seed": seed,
            "device pages": num_pages,
            "host pages": host_pages,
            "oversubscribed": round(machine.most_wanted / num_pages, 1),
            "operations": machine.counts,
            "backed up": counters.backed_up,
            "loaded": counters.loaded,
            "fetched": counters.fetched,
            "stored": counters.stored,
            "failed": counters.failed_backups + counters.failed_fetches + counters.failed_stores,
            "late": counters.late_fetches,
            "seconds": round(time.perf_counter() - begin, 1),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(
        f"{sum(sum(row['operations'].values()) for row in rows)} operations, nothing lost or wrong"
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
