"""The benchmark from its options to its report."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from radixrt.bench.html import as_html
from radixrt.bench.measure import Measurement, check_names, measure
from radixrt.bench.models import model_config
from radixrt.bench.report import Report, Side, note, show
from radixrt.bench.server import LOG_TAIL, ServerDriver, serving
from radixrt.bench.workloads import WORKLOADS
from radixrt.config import RuntimeConfig
from radixrt.errors import ConfigError, EngineFault
from radixrt.html_report import check_path
from radixrt.runtime.serving.supervisor import dump_config


def run_bench(
    model: str = "",
    *,
    only: Sequence[str] = (),
    scale: float = 1.0,
    seeds: Sequence[int] = (0, 100),
    settings: Sequence[str] = (),
    has_engine: bool = True,
    has_server: bool = True,
    json_file: Path | None = None,
    html_file: Path | None = None,
) -> Report:
    """Measure, print the table, write the JSON and the HTML, and return what was found.

    ``only`` names workloads, all when empty; ``scale`` shortens every length; the better of the
    runs with ``seeds`` counts. Raises ``ConfigError`` before anything starts, ``EngineFault`` and
    ``CallFailed`` when a run fails.
    """
    workloads = tuple(only or WORKLOADS)
    check_names(workloads)
    if not seeds:
        raise ConfigError("--seeds: give at least one number")
    if not 0 < scale <= 1:
        raise ConfigError(f"--scale {scale:g}: use a number in (0, 1]; 1 is the full workload")
    if not (has_engine or has_server):
        raise ConfigError("--no-engine --no-server: nothing is left to measure; drop one of them")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigError(f"--json {json_file}: there is no such folder; make it first")
    if html_file is not None:
        check_path("--html", html_file)
    with model_config(model, settings) as config:
        config.resolve()  # says what is wrong before anything starts
        engine = server = None
        if has_engine:
            engine = measure_engine(config, workloads, tuple(seeds), scale)
        if has_server:
            server = measure_server(config, workloads, tuple(seeds), scale)
        report = Report(
            model or config.model_path.name, config, scale, tuple(seeds), engine, server
        )
        show(report, sys.stdout)
        if json_file is not None:
            text = json.dumps(report.as_json(), indent=1, default=str)
            json_file.write_text(text + "\n", encoding="utf-8")
        if html_file is not None:
            html_file.write_text(as_html(report), encoding="utf-8")
    return report


def measure_engine(
    config: RuntimeConfig, workloads: tuple[str, ...], seeds: tuple[int, ...], scale: float
) -> Side:
    """Run the workloads on the engine alone, in a process of its own that has ended on return."""
    job = {"config": msgspec.Raw(dump_config(config)), "workloads": workloads}
    data = msgspec.json.encode({**job, "seeds": seeds, "scale": scale})
    command = [sys.executable, "-m", "radixrt.bench.engine"]
    begin = time.perf_counter()
    start_s, info, runs = 0.0, {}, []
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin:
                process.stdin.write(data)
            for line in process.stdout:
                event: dict[str, Any] = json.loads(line)
                if event["event"] == "failed":
                    raise EngineFault(f"the engine in process: {event['message']}")
                if event["event"] == "first token":
                    start_s, info = time.perf_counter() - begin, event["info"]
                    note(f"in process: first token after {start_s:.1f} s; {_summary(info)}")
                else:
                    runs.append(msgspec.convert(event["run"], Measurement))
                    _note_run("in process", runs[-1])
            if process.wait() != 0:
                log.seek(0)
                tail = log.read().decode(errors="replace")[-LOG_TAIL:]
                raise EngineFault(
                    f"the engine in process ended (exit code {process.wait()}): {tail}"
                )
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()
    return Side(start_s, info, tuple(runs))


def measure_server(
    config: RuntimeConfig, workloads: tuple[str, ...], seeds: tuple[int, ...], scale: float
) -> Side:
    """Run the workloads through a server that is started for it and has ended on return."""
    begin = time.perf_counter()
    with serving(config) as endpoint:
        driver = ServerDriver.connect(endpoint)
        try:
            driver.generate([[1]], [1])
            start_s = time.perf_counter() - begin
            note(f"through the server: first token after {start_s:.1f} s")
            runs = []
            for workload in workloads:
                for seed in seeds:
                    runs.append(measure(driver, workload, seed, scale))
                    _note_run("through the server", runs[-1])
        finally:
            driver.close()
    return Side(start_s, {}, tuple(runs))


def _note_run(where: str, run: Measurement) -> None:
    note(f"{where}: {run.workload}, seed {run.seed}: {run.seconds:.2f} s, {run.rate:,.0f} tok/s")


def _summary(info: dict[str, Any]) -> str:
    names = ("device", "dtype", "attention", "ops", "kv_tokens", "max_running")
    return ", ".join(f"{name} {info[name]}" for name in names if name in info)
