"""The disk tier killed in the middle of its writes, and opened with many pages.

    python benchmarks/hicache_crash.py --kills 500 --pages 100000

A child process stores runs of pages and reports each one when its put has completed, which is after
its sync; it is killed (SIGKILL) after a random time. The parent opens the directory and counts how
many of the reported pages come back right, how many wrong (never, or the run ends with an error),
and whether every key can be written again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from tier_harness import PAGE_SIZE, Pool, get, put, run_of

from radixrt.cache.disk import DiskTier
from radixrt.cache.records import Layout
from radixrt.cache.tier import PageRun

PAGES_OF_A_RUN = 5
LAYOUT = Layout(PAGE_SIZE, 200, b"layout of a test")
SEGMENT_BYTES = 200 * LAYOUT.record_bytes


def write_forever(folder: Path, first: int) -> None:
    """Store runs and report each when it is safe."""
    pool = Pool()
    tier = DiskTier(folder, LAYOUT, pool.data, segment_bytes=SEGMENT_BYTES)
    print("ready", flush=True)
    for seed in range(first, first + 1_000_000):
        assert put(tier, pool, run_of(seed, PAGES_OF_A_RUN)).outcome == "ok"
        print(seed, flush=True)


def kill_writers(folder: Path, kills: int) -> dict[str, Any]:
    """Kill one writer after another over the same directory."""
    rng = random.Random(0)
    fenced: list[int] = []
    back = lost = 0
    opened: list[float] = []
    pool = Pool()
    for _ in range(kills):
        first = fenced[-1] + 1 if fenced else 0
        command = [sys.executable, __file__, "--writer", str(folder), "--first", str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.expovariate(1 / 0.02))
            process.send_signal(signal.SIGKILL)
            reported = process.stdout.read()
        lines = reported.split(b"\n")[:-1]
        new = [int(line) for line in lines]
        begin = time.perf_counter()
        tier = DiskTier(folder, LAYOUT, pool.data, segment_bytes=SEGMENT_BYTES)
        opened.append(time.perf_counter() - begin)
        # What is new, and a sample of what is older.
        for seed in [*new, *rng.sample(fenced, min(5, len(fenced)))]:
            found = get(tier, pool, run_of(seed, PAGES_OF_A_RUN)).num_pages
            back += found
            lost += PAGES_OF_A_RUN - found
        # The run that was being written can be written again.
        after = run_of((new or [first - 1])[-1] + 1, PAGES_OF_A_RUN)
        assert put(tier, pool, after).outcome == "ok", "a key that cannot be rewritten"
        assert get(tier, pool, after).num_pages == PAGES_OF_A_RUN
        tier.close()
        fenced += new
    return {
        "kills": kills,
        "fenced runs": len(fenced),
        "pages checked": back + lost,
        "pages back": back,
        "share": back / max(1, back + lost),
        "median open s": sorted(opened)[len(opened) // 2],
    }


def open_many(folder: Path, num_pages: int) -> dict[str, Any]:
    """Store many pages and measure how long opening takes, after a clean end and after none."""
    pool = Pool(4096)
    tier = DiskTier(folder, LAYOUT, pool.data)
    size = 1000
    for seed in range(num_pages // size):
        tokens = np.random.default_rng(seed).integers(0, 10**6, size * PAGE_SIZE)
        run = PageRun("model", tokens.astype(np.int32), PAGE_SIZE, 0, size)
        assert put(tier, pool, run).num_pages == size
    tier.close()
    results: dict[str, Any] = {"pages": num_pages}
    for name in ("sealed", "open"):
        if name == "open":  # as after a crash: no index at the end of the last segment
            last = max(folder.glob("*.seg"))
            os.truncate(last, last.stat().st_size - 8)
        begin = time.perf_counter()
        tier = DiskTier(folder, LAYOUT, pool.data)
        results[f"{name}: seconds to open"] = time.perf_counter() - begin
        assert tier.stats().ready == num_pages, tier.stats()
        tier.close()
    return results


def main() -> None:
    """Print both results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--pages", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--writer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.writer:
        write_forever(options.writer, options.first)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = {"kill": kill_writers(Path(folder, "a"), options.kills)}
        print(json.dumps(report["kill"]), flush=True)
        report["open"] = open_many(Path(folder, "b"), options.pages)
        print(json.dumps(report["open"]))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
