"""Ray Data: examples/ray_batch.py on a cluster of one node, over the node's server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from checks import ENDPOINT, Checks

import radixrt

checks = Checks()
EXAMPLE = Path(radixrt.__file__).parent.parent / "examples" / "ray_batch.py"
environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}

with checks.that("the few-shot evaluation over Ray Data, its shots computed once"):
    command = [sys.executable, str(EXAMPLE), "--endpoint", ENDPOINT, "--rows", "160"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    print(ended.stdout[-2000:])
    assert ended.returncode == 0, ended.stderr.strip()[-300:]
    accuracy = float(re.search(r"accuracy ([0-9.]+) on 160 rows", ended.stdout)[1])
    cached = float(re.search(r"\(([0-9.]+)%\)", ended.stdout)[1])
    assert accuracy > 0.95, accuracy
    assert cached > 80, cached
    checks.note(f"accuracy {accuracy}, {cached} % of the prompt tokens from the cache")

checks.end()
