"""Every Python block of the README and the docs runs, in order, on the shipped model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from lang.scripted_openai import ScriptedOpenAI

import radixrt as rt

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def backend() -> Iterator[rt.Backend]:
    with rt.Runtime() as runtime:
        yield runtime


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedOpenAI]:
    """Somebody else's server, for pages about those."""
    with ScriptedOpenAI().serving() as server:
        yield server


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name
)
def test_the_code_blocks_of_a_page_run(
    page: Path,
    backend: rt.Backend,
    server: ScriptedOpenAI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    rt.set_default_backend(backend)
    names: dict[str, object] = {"rt": rt, "backend": backend, "url": server.url}
    try:
        for number, block in enumerate(blocks(page)):
            exec(compile(block, f"{page.name} block {number}", "exec"), names)
    finally:
        rt.set_default_backend(None)
