"""One runtime with the shipped model, and one gateway to it, for all tests of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway_process import Gateway, Nano, gateway, serving_nano


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nano]:
    with serving_nano(tmp_path_factory.mktemp("nano")) as served:
        yield served


@pytest.fixture(scope="session")
def api(nano: Nano) -> Iterator[Gateway]:
    with gateway(nano.endpoint, max_body_bytes=200_000) as served:
        served.await_phase("ready")
        yield served
