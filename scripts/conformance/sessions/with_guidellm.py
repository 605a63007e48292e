"""guidellm: a short benchmark of concurrent streams."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from checks import FACTS, MODEL, URL, Checks

checks = Checks()
NUM_REQUESTS, NUM_STREAMS = 48, 8
prompts, results = Path("prompts.jsonl").resolve(), Path("results.json").resolve()
prompts.write_text(
    "".join(
        json.dumps({"prompt": f"{FACTS} Question {number}: where does Maria live?"}) + "\n"
        for number in range(NUM_REQUESTS)
    )
)

for path in ("/v1/chat/completions", "/v1/completions"):
    with checks.that(f"{NUM_REQUESTS} requests on {NUM_STREAMS} streams to {path}, none failed"):
        command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
        command += [
            "--backend",
            f"kind=openai_http,target={URL},model={MODEL},request_format={path}",
        ]
        command += ["--profile", f"kind=concurrent,streams={NUM_STREAMS}"]
        command += ["--constraint", f"kind=max_requests,count={NUM_REQUESTS}"]
        command += ["--data", f"kind=json_file,path={prompts}"]
        command += ["--output", f"kind=json,path={results}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=140)
        assert ended.returncode == 0, (ended.stderr or ended.stdout)[-300:]
        [benchmark] = json.loads(results.read_text())["benchmarks"]
        totals = benchmark["metrics"]["request_totals"]
        print(totals)
        assert totals["successful"] == NUM_REQUESTS
        assert totals["errored"] == 0

checks.end()
