"""Two runtimes share what they computed through a server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from engine_harness import Runtime
from redis_server import Server, needs_server

from radixrt.cache.records import Layout
from radixrt.cache.tier import Tier
from radixrt.cache.tier_policy import TierPolicy
from radixrt.runtime.model.decoder import CausalLM

pytest.importorskip("redis", reason="the extra redis is not installed")
pytestmark = needs_server

PROMPT = list(range(3, 60))


def ask(runtime: Runtime, prompt: list[int]) -> tuple[list[int], int]:
    call = runtime.run(prompt)
    end = time.monotonic() + 20
    runtime.step()
    while len(runtime.calls):
        assert time.monotonic() < end, "a call hangs"
        runtime.step()
    return runtime.tokens(call), runtime.end(call).usage.cached


def test_what_one_runtime_computed_another_loads(model: CausalLM, tmp_path: Path) -> None:
    from radixrt.cache.remote import RemoteTier

    server = Server(tmp_path)
    server.start()

    def stores(runtime: Runtime) -> Sequence[Tier]:
        assert runtime.host is not None
        data = runtime.host.data
        form = Layout(4, data.shape[1], b"form of the test")
        return [RemoteTier(server.url, form, data, clock=runtime.clock)]

    policy = TierPolicy(always_load=True, store_on="once")
    first, second = (Runtime(model, host_pages=100, stores=stores, policy=policy) for _ in range(2))
    try:
        expected, cached = ask(first, PROMPT)
        assert cached == 0
        assert first.tiers is not None
        assert first.tiers.fence(20)
        assert ask(second, PROMPT) == (expected, 56)
        server.stop()
        other = [*PROMPT[:20], *range(90, 110)]
        alone = ask(Runtime(model), other)[0]
        assert ask(second, other) == (alone, 20), "a server that is gone costs no call"
    finally:
        server.stop()
        first.loop.close()
        second.loop.close()
