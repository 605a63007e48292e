"""What the examples share: held-out data of the model that ships, and a runtime to run on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import radixrt as rt

DIRECTORY = Path(rt.__file__).parent / "models" / "nano" / "heldout"


def held_out(name: str, count: int | None = None) -> list[dict[str, Any]]:
    """Return the first ``count`` items of a held-out set; the model was not trained on them."""
    lines = (DIRECTORY / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def share(correct: list[bool]) -> float:
    return sum(correct) / len(correct)


def runtime(description: str) -> rt.Backend:
    """Return the runtime at ``--endpoint``, or one in this process when none is named."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--endpoint", help="of a running `radixrt serve`: ipc://… or tcp://…")
    endpoint = parser.parse_args().endpoint
    return rt.connect(endpoint) if endpoint else rt.Runtime()
