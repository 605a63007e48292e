"""A runtime whose engine dies, or that is started again, finds on disk what it had computed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import radixrt as rt
from radixrt.errors import ConfigError

OPTIONS = {"memory": "300MiB", "max_running": 8, "store_on": "once"}


@rt.function
def ask(s: rt.State) -> None:
    s += "Facts: Maria lives in Lisbon and works as a baker. " * 12
    s += rt.gen("answer", max_tokens=8, temperature=0)


def cached(state: rt.State) -> int:
    return int(state.get_meta_info("answer")["cached_tokens"])


def wait_for_pages(folder: Path) -> None:
    """Until the copy on disk has stopped growing: nobody waits for it otherwise."""
    end, size = time.monotonic() + 30, -1
    while time.monotonic() < end:
        now = sum(path.stat().st_size for path in folder.glob("*.seg"))
        if now == size and now > 1000:
            return
        size = now
        time.sleep(0.2)
    raise AssertionError("nothing was stored")


def test_a_runtime_that_is_started_again_loads_what_it_had(tmp_path: Path) -> None:
    with rt.Runtime(disk=tmp_path / "pages", **OPTIONS) as backend:
        first = ask.run(backend=backend)
        assert cached(first) == 0
        wait_for_pages(tmp_path / "pages")
    with rt.Runtime(disk=tmp_path / "pages", **OPTIONS) as backend:
        again = ask.run(backend=backend)
        assert again["answer"] == first["answer"]
        assert cached(again) >= 100
        with pytest.raises(ConfigError, match="in use"):
            rt.Runtime(disk=tmp_path / "pages", **OPTIONS)


def test_an_engine_killed_in_the_middle_of_its_work_is_replaced_with_its_pages(
    tmp_path: Path,
) -> None:
    ready, pages = tmp_path / "ready", tmp_path / "pages"
    command = [sys.executable, "-m", "radixrt", "serve", "--no-http", "--disk", str(pages)]
    command += ["--ready-file", str(ready), "--endpoint", f"ipc://{tmp_path}/s"]
    for name, value in OPTIONS.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    with subprocess.Popen(command) as process:
        try:
            end = time.monotonic() + 60
            while not ready.exists():
                assert process.poll() is None, "the runtime ended while it started"
                assert time.monotonic() < end, "the runtime did not start"
                time.sleep(0.02)
            backend = rt.connect(ready.read_text().strip())
            first = ask.run(backend=backend)
            assert cached(first) == 0
            wait_for_pages(pages)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            (engine,) = children.split()
            os.kill(int(engine), signal.SIGKILL)
            again = None
            while again is None and time.monotonic() < end:
                try:
                    again = ask.run(backend=backend)
                    answer = again["answer"]
                except rt.RadixError:
                    again = None
                    time.sleep(0.1)
            assert again is not None, "the engine did not come back"
            assert answer == first["answer"]
            assert cached(again) >= 100
            backend.shutdown()
        finally:
            process.terminate()
            process.wait(30)
