"""The simulator against a naive one, and its traces."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from radixrt.cache.plot import hit_rate_svg
from radixrt.cache.simulator import CLASSIC, POLICIES, simulate
from radixrt.cache.trace import TraceRequest, read_trace, shuffled_hints, write_trace
from radixrt.cache.workload import Agents, Conversations, generate, working_set
from radixrt.errors import InvalidArgument


def random_trace(seed: int, num: int = 300) -> list[TraceRequest]:
    """Requests over a random tree of blocks; a block has one parent."""
    random = Random(seed)
    paths: list[tuple[int, ...]] = [()]
    blocks = 0
    trace = []
    for i in range(num):
        base = random.choice(paths[-30:])
        base = base[: random.randrange(len(base) + 1)]
        new = random.randrange(1, 5)
        path = base if base and random.random() < 0.4 else (*base, *range(blocks, blocks + new))
        blocks += new
        paths.append(path)
        trace.append(TraceRequest(float(i), path, 10 * len(path)))
    return trace


def naive_hits(trace: list[TraceRequest], capacity: int, *, knows_future: bool) -> int:
    """Blocks served by a cache that looks at every block when it evicts one."""
    cached: dict[int, float] = {}
    parents: dict[int, int | None] = {}
    hits = 0
    for now, request in enumerate(trace):
        blocks = request.blocks
        parents.update(zip(blocks, (None, *blocks), strict=False))
        if len(blocks) > capacity:
            continue
        found = 0
        while found < len(blocks) and blocks[found] in cached:
            found += 1
        hits += found
        for block in blocks:
            ahead = range(now + 1, len(trace))
            following = next((i for i in ahead if block in trace[i].blocks), len(trace))
            cached[block] = -following if knows_future else now
        while len(cached) > capacity:
            inner = {parents[block] for block in cached}
            leaves = [block for block in cached if block not in inner and block not in blocks]
            del cached[min(leaves, key=lambda block: (cached[block], blocks_order(trace, block)))]
    return hits


def blocks_order(trace: list[TraceRequest], block: int) -> int:
    return next(i for i, request in enumerate(trace) if block in request.blocks)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("capacity", [9, 20, 60])
def test_lru_and_the_optimum_hit_what_a_naive_cache_hits(seed: int, capacity: int) -> None:
    trace = random_trace(seed)
    for policy, knows_future in (("lru", False), ("optimum", True)):
        simulated = simulate(trace, policy, 10 * capacity, block_tokens=10)
        expected = naive_hits(trace, capacity, knows_future=knows_future)
        # Where two leaves are equal to the policy either may go, which moves a few later hits.
        assert abs(simulated.hit_tokens - 10 * expected) <= 0.03 * simulated.num_tokens


@pytest.mark.parametrize("seed", range(3))
def test_no_policy_beats_the_optimum_and_memory_enough_for_all_makes_them_equal(seed: int) -> None:
    trace = random_trace(seed)
    most = {simulate(trace, policy, 10**6, block_tokens=10).hit_tokens for policy in POLICIES}
    assert len(most) == 1
    for capacity in (100, 300, 900):
        best = simulate(trace, "optimum", capacity, block_tokens=10).hit_tokens
        for policy in POLICIES:
            hits = simulate(trace, policy, capacity, block_tokens=10).hit_tokens
            assert hits <= best + 0.01 * 10 * len(trace), policy


def test_programs_that_say_what_they_do_are_served_better() -> None:
    trace = generate(Agents(num_requests=1500))
    capacity = working_set(trace) // 2
    rates = {
        policy: simulate(trace, policy, capacity).hit_rate
        for policy in ("lru", "learned", "signals", "optimum")
    }
    gap = rates["optimum"] - rates["lru"]
    assert rates["signals"] >= rates["lru"] + 0.25 * gap
    assert rates["signals"] > rates["learned"]
    wrong = simulate(list(shuffled_hints(trace, 1)), "signals", capacity).hit_rate
    assert wrong >= rates["lru"] - 0.01


def test_conversations_are_served_no_worse_than_by_the_classic_policies() -> None:
    trace = generate(Conversations(num_requests=1500))
    classic = max(simulate(trace, policy, 400_000).hit_rate for policy in CLASSIC)
    assert simulate(trace, "learned", 400_000).hit_rate >= classic - 0.005


@pytest.mark.parametrize("workload", [Agents(num_requests=400), Conversations(num_requests=400)])
def test_a_made_up_trace_is_a_tree_in_order_of_time_and_survives_its_file(
    workload: Agents | Conversations, tmp_path: Path
) -> None:
    trace = generate(workload)
    assert trace == generate(workload)
    assert sum(bool(request.blocks) for request in trace) == 400
    parents: dict[int, int | None] = {}
    ended: set[int | None] = set()
    for before, request in zip([trace[0], *trace], trace, strict=False):
        assert before.time_s <= request.time_s
        assert request.program not in ended, "a request of a program that has ended"
        for block, parent in zip(request.blocks, (None, *request.blocks), strict=False):
            assert parents.setdefault(block, parent) == parent
        if request.is_end:
            ended.add(request.program)
    path = tmp_path / "trace.jsonl"
    assert write_trace(path, trace) == len(trace)
    read = read_trace(path)
    assert [(r.blocks, r.num_tokens, r.program, r.is_end) for r in read] == [
        (r.blocks, r.num_tokens, r.program, r.is_end) for r in trace
    ]


@pytest.mark.parametrize("line", ["no json", "[1]", '{"timestamp": 1, "hash_ids": ["x"]}', "{}"])
def test_a_line_that_is_no_request_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 5, "hash_ids": [1]}\n' + line + "\n")
    with pytest.raises(InvalidArgument, match="line 2"):
        read_trace(path)


def test_an_unknown_policy_and_a_cache_of_no_block_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="choose from lru"):
        simulate([], "mru", 10_000)
    with pytest.raises(InvalidArgument, match="a block is 512"):
        simulate([], "lru", 511)


def test_a_request_larger_than_the_cache_is_counted_and_served_by_nobody() -> None:
    trace = [TraceRequest(float(i), tuple(range(9)), 90) for i in range(2)]
    simulated = simulate(trace, "learned", 80, block_tokens=10)
    assert (simulated.num_refused, simulated.hit_tokens, simulated.num_tokens) == (2, 0, 180)


def test_the_plot_is_xml_that_names_every_policy() -> None:
    import xml.etree.ElementTree as ElementTree

    trace = random_trace(0, 50)
    results = [
        simulate(trace, policy, capacity, block_tokens=10)
        for policy in ("lru", "learned")
        for capacity in (50, 200)
    ]
    root = ElementTree.fromstring(hit_rate_svg(results, "a < b"))
    text = "".join(root.itertext())
    assert "learned" in text
    assert "a < b" in text
