"""schemathesis: requests made up from the server's own description of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from checks import URL, Checks

checks = Checks()
command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{URL}/openapi.json"]
# One worker: several of them trip over CPython 3.11 itself (its ast module).
# A flush or a drain is what it says; what is asked here is that nothing is answered with a 5xx.
command += ["--checks", "not_a_server_error", "--max-time", "150", "--workers", "1"]
command += ["--request-timeout", "60", "--seed", "1", "--phases", "examples,coverage,fuzzing"]

with checks.that("no request is answered with a server error"):
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    print(ended.stdout[-6000:])
    cases = [line.strip() for line in ended.stdout.splitlines() if "generated" in line]
    if cases:
        checks.note(cases[-1])
    assert ended.returncode == 0, ended.stdout.strip().splitlines()[-1]

checks.end()
