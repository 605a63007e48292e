"""Runs other people's clients against a server with the shipped model, and writes the table.

    python scripts/conformance/run.py                 # all of them
    python scripts/conformance/run.py openai litellm  # some; the others' rows stay as they were

Each client has a virtual environment of its own under the cache directory, made at its first run.
A server is started for each; a failure of the server's own (a traceback in its log) fails the row.
Results are kept in ``results.json`` beside this file; ``docs/conformance.md`` is written from them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

from clients import CLIENTS, Client  # noqa: E402
from servers import serving  # noqa: E402
from table import page  # noqa: E402

RESULTS = HERE / "results.json"
PAGE = ROOT / "docs" / "conformance.md"

TORCH = "torch==2.13.0\n"
INSTALL_TIMEOUT_S = 1800.0


def environment_of(client: Client, cache: Path, *, is_fresh: bool) -> Path:
    """Return the interpreter of a client's environment; installs it when it is not there."""
    directory = cache / client.name
    python = directory / "bin" / "python"
    marker = directory / "installed.json"
    wanted = json.dumps([client.requirements, platform.python_version()])
    if not is_fresh and marker.exists() and marker.read_text() == wanted:
        return python
    print(f"== {client.name}: installing {' '.join(client.requirements)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
    pins = cache / "constraints.txt"
    pins.write_text(TORCH)
    command = ["nice", str(python), "-m", "pip", "install", "--quiet"]
    command += ["--disable-pip-version-check", *client.requirements]
    if client.torch:
        command += ["--constraint", str(pins)]
    subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S)
    marker.write_text(wanted)
    return python


def version_of(python: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    found = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def tried(client: Client, python: Path) -> dict[str, Any]:
    """Run a client's session; return its row."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as name:
        directory = Path(name)
        results = directory / "results.json"
        with serving() as server:
            environment = {
                **{key: value for key, value in os.environ.items() if "PROXY" not in key.upper()},
                "CONFORMANCE_URL": server.url,
                "CONFORMANCE_ENDPOINT": server.endpoint,
                "CONFORMANCE_RESULTS": str(results),
                "CONFORMANCE_SERVE": sys.executable,
                "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
                "OPENAI_API_KEY": "unused",
                # No client may look for models, tokenizers or prices elsewhere.
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_OFFLINE": "1",
                "HOME": str(directory),
            }
            command = [str(python), str(HERE / "sessions" / client.script)]
            try:
                subprocess.run(
                    command, env=environment, cwd=directory, timeout=client.timeout_s, check=False
                )
                ended = "it wrote no results"
            except subprocess.TimeoutExpired:
                ended = f"it did not end within {client.timeout_s:g} s"
            log = server.log.read_text(errors="replace")
        report = (
            json.loads(results.read_text())
            if results.exists()
            else {"checks": [{"what": "the session", "error": ended}], "notes": []}
        )
        if "Traceback" in log:
            at = log.index("Traceback")
            print(log[at : at + 4000])
            failure = log[at:].strip().splitlines()
            report["checks"].append({"what": "the server's log is clean", "error": failure[-1]})
    return {
        "version": version_of(python, client.package),
        "date": datetime.date.today().isoformat(),
        **report,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [client.name for client in CLIENTS]
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=", ".join(known))
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        / "radixrt-conformance",
        help="where the environments are kept",
    )
    parser.add_argument("--fresh", action="store_true", help="install newest versions again")
    given = parser.parse_args(arguments)
    unknown = set(given.clients) - set(known)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    given.cache.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    failed = []
    for client in CLIENTS:
        if given.clients and client.name not in given.clients:
            continue
        python = environment_of(client, given.cache, is_fresh=given.fresh)
        print(f"== {client.name}", flush=True)
        rows[client.name] = tried(client, python)
        if any(check["error"] for check in rows[client.name]["checks"]):
            failed.append(client.name)
        RESULTS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        PAGE.write_text(page(CLIENTS, rows), encoding="utf-8")
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
