from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lang.scripted_runtime import ScriptedRuntime

from radixrt.lang import Backend

_DEADLINE_S = 20.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing in the language may hang: every test here has a deadline of its own."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(_DEADLINE_S))


@pytest.fixture
def runtime() -> ScriptedRuntime:
    return ScriptedRuntime()


@pytest.fixture
def backend(runtime: ScriptedRuntime) -> Iterator[Backend]:
    with Backend(runtime.transport) as backend:
        yield backend
