"""Namespace fingerprints."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace

from radixrt.cache.namespace import Namespace

BASE = Namespace("w", "t", "rope theta 1e4", "bfloat16", 16, "24x2x64 lpthd")


def test_every_field_tells_namespaces_apart() -> None:
    others = [
        replace(BASE, **{field.name: 32 if field.name == "page_size" else "other"})
        for field in fields(Namespace)
    ]
    assert len({BASE.fingerprint(), *(other.fingerprint() for other in others)}) == 1 + len(others)


def test_text_cannot_move_from_one_field_to_the_next() -> None:
    one = replace(BASE, adapter="ab", tenant="c").fingerprint()
    two = replace(BASE, adapter="a", tenant="bc").fingerprint()
    assert one != two


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from radixrt.cache.namespace import Namespace;"
        f"print(Namespace(*{[getattr(BASE, f.name) for f in fields(Namespace)]!r}).fingerprint())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == BASE.fingerprint()


def test_the_fingerprint_does_not_change_between_versions() -> None:
    # Pages on disk outlive the process that wrote them.
    assert BASE.fingerprint() == "420a7c5e39848d39de11f24b07852929"
