"""What the engine tells who looks, over its tiers."""

from __future__ import annotations

from typing import Any

import numpy as np
from engine_harness import Runtime

from radixrt.cache.view import SWEEP_S
from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.wire import EngineReply, InspectTree

PROMPT = [3 + i * 7 % 110 for i in range(41)]


def ask(runtime: Runtime, since: int = 0, node: int = 0) -> dict[str, Any]:
    runtime.clock.now += SWEEP_S
    runtime.num_ids += 1
    runtime.put(InspectTree(runtime.num_ids, since, heads=True, node=node))
    runtime.step()
    (reply,) = [m for m in runtime.channel.sent if isinstance(m, EngineReply)][-1:]
    assert reply.id == runtime.num_ids
    return reply.data


def take(nodes: dict[int, dict[str, Any]], answer: dict[str, Any]) -> int:
    if answer["is_full"]:
        nodes.clear()
    for gone in answer["gone"]:
        nodes.pop(gone, None)
    nodes.update({node["id"]: node for node in answer["nodes"]})
    return int(answer["generation"])


def shape(nodes: dict[int, dict[str, Any]]) -> set[tuple[str, int]]:
    return {(n["tier"], n["tokens"]) for n in nodes.values() if "namespace" not in n}


def test_what_the_device_gave_up_is_shown_as_the_hosts_until_it_comes_back(
    model: CausalLM,
) -> None:
    runtime = Runtime(model, host_pages=80, max_context=200)
    assert runtime.tiers is not None
    nodes: dict[int, dict[str, Any]] = {}
    runtime.generate(PROMPT)
    assert runtime.tiers.fence(10)
    generation = take(nodes, ask(runtime))
    (run,) = [n for n in nodes.values() if n["tokens"] > 4]
    assert run["tier"] == "device"
    assert run["host"] == run["tokens"]

    runtime.cache.clear()
    generation = take(nodes, ask(runtime, generation))
    assert shape(nodes) == {("host", run["tokens"])}
    (rest,) = [n for n in nodes.values() if "namespace" not in n]
    path = ask(runtime, node=rest["id"])["path"]
    tokens = np.frombuffer(b"".join(key for _, key in path), ">u4").tolist()
    assert tokens[: len(PROMPT)] == PROMPT
    assert len(tokens) == run["tokens"]

    runtime.generate(PROMPT)
    generation = take(nodes, ask(runtime, generation))
    assert {tier for tier, _ in shape(nodes)} == {"device"}
    fresh: dict[int, dict[str, Any]] = {}
    take(fresh, ask(runtime))
    assert fresh == nodes


def test_what_the_host_has_beyond_the_device_hangs_where_it_continues(model: CausalLM) -> None:
    runtime = Runtime(model, host_pages=80, max_context=200)
    assert runtime.tiers is not None
    runtime.generate(PROMPT)
    assert runtime.tiers.fence(10)
    runtime.cache.clear()
    runtime.tiers.policy = type(runtime.tiers.policy)(min_load_tokens=1000)  # compute it again
    runtime.generate(PROMPT[:20] + [119] * 20)
    nodes: dict[int, dict[str, Any]] = {}
    take(nodes, ask(runtime))
    (rest,) = [n for n in nodes.values() if n["tier"] == "host"]
    parent = nodes[rest["parent"]]
    assert parent["tier"] == "device"
    whole = ask(runtime, node=rest["id"])["path"]
    tokens = np.frombuffer(b"".join(key for _, key in whole), ">u4").tolist()
    assert tokens[: len(PROMPT)] == PROMPT
    assert rest["tokens"] == len(tokens) - 20
    assert parent["host"] >= 20


def test_running_and_waiting_requests_are_told(model: CausalLM) -> None:
    runtime = Runtime(model, max_running=2, max_step_tokens=16)
    first = runtime.run(PROMPT, max_tokens=20)
    for i in range(3):
        runtime.run([5 + i, *PROMPT], max_tokens=20)
    answer = ask(runtime)
    states = [request["state"] for request in answer["requests"]]
    assert len(states) == 4
    assert answer["num_running"] + answer["num_waiting"] == 4
    assert states.count("waiting") == answer["num_waiting"]
    (told,) = [r for r in answer["requests"] if r["id"] == first]
    assert told["prompt"] == len(PROMPT)
    runtime.finish()
    assert ask(runtime)["requests"] == []
