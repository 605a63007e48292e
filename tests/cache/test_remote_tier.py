"""The remote tier against a real server; skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redis_server import Server, needs_server
from tier_harness import LAYOUT, Pool, get, put, run_of, wait

from radixrt.cache.records import Layout
from radixrt.errors import ConfigError

redis = pytest.importorskip("redis", reason="the extra redis is not installed")

from radixrt.cache.remote import RemoteTier  # noqa: E402

pytestmark = needs_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def tiers() -> Iterator[list[RemoteTier]]:
    made: list[RemoteTier] = []
    yield made
    for tier in made:
        tier.close()


@pytest.fixture
def tier(server: Server, pool: Pool, tiers: list[RemoteTier]) -> RemoteTier:
    tiers.append(RemoteTier(server.url, LAYOUT, pool.data))
    return tiers[-1]


def test_what_one_runtime_put_another_finds(
    server: Server, tier: RemoteTier, pool: Pool, tiers: list[RemoteTier]
) -> None:
    run = run_of(1, 10)
    assert put(tier, pool, run).num_pages == 10
    other_pool = Pool()
    tiers.append(RemoteTier(server.url, LAYOUT, other_pool.data))
    ended = get(tiers[-1], other_pool, run)
    assert (ended.outcome, ended.num_pages) == ("ok", 10)
    assert get(tiers[-1], other_pool, run.part(3, 7)).num_pages == 4


def test_the_leading_pages_that_are_there_come(tier: RemoteTier, pool: Pool) -> None:
    run = run_of(1, 10)
    put(tier, pool, run.part(0, 6))
    ended = get(tier, pool, run)
    assert (ended.outcome, ended.num_pages) == ("missing", 6)
    assert tier.probe(run.part(6, 10)) == 0, "what was just missing is not asked for again"
    assert tier.probe(run) == 10
    put(tier, pool, run)
    assert tier.probe(run.part(6, 10)) == 4
    assert get(tier, pool, run).num_pages == 10


def test_puts_and_drops_are_idempotent(tier: RemoteTier, pool: Pool) -> None:
    run = run_of(1, 5)
    for _ in range(2):
        assert put(tier, pool, run).num_pages == 5
    for _ in range(2):
        tier.drop(run.part(2, 5))
    assert get(tier, pool, run).num_pages == 2


@pytest.mark.parametrize("kind", ["payload", "header", "short", "empty", "foreign", "swapped"])
def test_a_wrong_value_is_a_miss_that_can_be_written_again(
    server: Server, tier: RemoteTier, pool: Pool, kind: str
) -> None:
    run = run_of(1, 5)
    put(tier, pool, run)
    client = redis.Redis.from_url(server.url)
    key = tier._prefix + run.keys[2]
    value = bytearray(client.get(key))
    if kind == "payload":
        value[-1] ^= 1
    elif kind == "header":
        value[20] ^= 1
    elif kind == "short":
        del value[-10:]
    elif kind == "empty":
        value.clear()
    elif kind == "foreign":
        value[:] = b"somebody else's value"
    else:
        value = bytearray(client.get(tier._prefix + run.keys[3]))
    client.set(key, bytes(value))
    ended = get(tier, pool, run)
    assert (ended.outcome, ended.num_pages) == ("corrupt", 2)
    assert tier.stats().corrupt == 1
    assert client.get(key) is None
    client.close()
    put(tier, pool, run)
    assert get(tier, pool, run).outcome == "ok"


def test_another_namespace_or_layout_never_hits(
    server: Server, tier: RemoteTier, pool: Pool, tiers: list[RemoteTier]
) -> None:
    put(tier, pool, run_of(1, 4))
    assert get(tier, pool, run_of(1, 4, namespace="model tenant")).num_pages == 0
    tiers.append(RemoteTier(server.url, Layout(4, 200, b"other dtype....."), pool.data))
    assert get(tiers[-1], pool, run_of(1, 4)).num_pages == 0


def test_a_server_that_goes_away_costs_a_miss_and_comes_back(
    server: Server, pool: Pool, tiers: list[RemoteTier]
) -> None:
    now = [0.0]
    tier = RemoteTier(server.url, LAYOUT, pool.data, clock=lambda: now[0])
    tiers.append(tier)
    run = run_of(1, 4)
    put(tier, pool, run)
    server.stop()
    assert get(tier, pool, run).outcome == "failed"
    assert tier.probe(run) == 0, "it is left alone for a while"
    assert put(tier, pool, run).outcome == "failed"
    server.start()
    now[0] += 10
    assert put(tier, pool, run).num_pages == 4
    assert get(tier, pool, run).outcome == "ok"


def test_a_full_server_refuses_and_the_pages_stay_missing(
    tmp_path: Path, pool: Pool, tiers: list[RemoteTier]
) -> None:
    server = Server(tmp_path)
    server.start("--maxmemory", "1", "--maxmemory-policy", "noeviction")
    try:
        tiers.append(RemoteTier(server.url, LAYOUT, pool.data))
        run = run_of(1, 4)
        assert put(tiers[-1], pool, run).outcome == "full"
        assert get(tiers[-1], pool, run).num_pages == 0
    finally:
        server.stop()


def test_a_get_that_is_late_is_not_begun(tier: RemoteTier, pool: Pool) -> None:
    ticket = tier.get(run_of(1, 4), np.arange(1, 5, dtype=np.int32), 0.0)
    assert wait(tier, ticket).outcome == "timeout"


def test_an_endpoint_that_is_none_is_refused(pool: Pool) -> None:
    with pytest.raises(ConfigError, match="remote=nonsense"):
        RemoteTier("nonsense", LAYOUT, pool.data)
