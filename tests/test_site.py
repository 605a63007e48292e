"""The documentation builds as a site, every link and every name of the reference found."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers")


@pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in PACKAGES),
    reason="needs the extra docs; `make docs` installs it",
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    built = subprocess.run(
        [*command, "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / "site" / "reference" / "language.html").read_text(encoding="utf-8")
    assert "gen_string" in reference
    assert "radixrt.lang.state.ProgramState.fork" in reference
