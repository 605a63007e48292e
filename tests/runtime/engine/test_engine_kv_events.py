"""Events of the cache, read as a router reads them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import zmq
from engine_harness import Runtime as EngineRuntime

import radixrt as rt
from radixrt.cache.radix import RadixCache
from radixrt.errors import ConfigError
from radixrt.runtime.engine.kv_events import MEDIUM_DEVICE, MEDIUM_HOST, KvEvents
from radixrt.runtime.model.decoder import CausalLM

# ---------------------------------------------------------------- vLLM's schema, as a client has it


class Kind(msgspec.Struct, array_like=True, omit_defaults=True, tag=True):
    pass


class BlockStored(Kind):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None = None


class BlockRemoved(Kind):
    block_hashes: list[int]
    medium: str | None = None


class AllBlocksCleared(Kind):
    pass


class Batch(msgspec.Struct, array_like=True, omit_defaults=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


decoder = msgspec.msgpack.Decoder(Batch)


class Router:
    """Knows what is cached, by what it was told."""

    def __init__(self, directory: Path, topic: str = "") -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.connect(f"ipc://{directory}/events")
        self.socket.subscribe(topic)
        self.replay = self.context.socket(zmq.DEALER)
        self.replay.connect(f"ipc://{directory}/replay")
        self.blocks: dict[str, dict[int, tuple[int | None, tuple[int, ...]]]] = {}
        self.numbers: list[int] = []
        self.num_cleared = 0

    def close(self) -> None:
        self.context.destroy(linger=0)

    def take(self, number: int, payload: bytes) -> None:
        if number < len(self.numbers):
            return  # from the replay already
        if number > len(self.numbers):
            self.catch_up()
            return
        self.numbers.append(number)
        for event in decoder.decode(payload).events:
            match event:
                case BlockStored():
                    of = self.blocks.setdefault(event.medium or "", {})
                    size = event.block_size
                    assert len(event.token_ids) == size * len(event.block_hashes)
                    parent = event.parent_block_hash
                    for i, block in enumerate(event.block_hashes):
                        assert block not in of
                        assert parent is None or parent in of
                        of[block] = parent, tuple(event.token_ids[i * size : (i + 1) * size])
                        parent = block
                case BlockRemoved():
                    for block in event.block_hashes:
                        del self.blocks[event.medium or ""][block]
                case AllBlocksCleared():
                    self.blocks.clear()
                    self.num_cleared += 1

    def read_until(self, is_there: Callable[[], bool]) -> None:
        """Take what comes until something is true."""
        deadline = time.monotonic() + 20
        while not is_there():
            assert time.monotonic() < deadline
            if self.socket.poll(100):
                _, number, payload = self.socket.recv_multipart()
                self.take(int.from_bytes(number, "big"), payload)
            else:
                self.catch_up()

    def catch_up(self) -> None:
        """Ask for what was missed."""
        self.replay.send_multipart([b"", len(self.numbers).to_bytes(8, "big")])
        is_more = True
        while is_more:
            assert self.replay.poll(10_000)
            _, number, payload = self.replay.recv_multipart()
            is_more = payload != b""
            if is_more:
                self.take(int.from_bytes(number, "big"), payload)
        assert number == (-1).to_bytes(8, "big", signed=True)

    def sequences(self, medium: str) -> set[tuple[int, ...]]:
        """The cached sequences that no other one continues."""
        blocks = self.blocks.get(medium, {})
        parents = {parent for parent, _ in blocks.values()}
        found = set()
        for block in blocks.keys() - parents:
            tokens: tuple[int, ...] = ()
            at: int | None = block
            while at is not None:
                parent, own = blocks[at]
                tokens, at = own + tokens, parent
            found.add(tokens)
        return found


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    router = Router(tmp_path)
    yield router
    router.close()


def cached(cache: RadixCache) -> set[tuple[int, ...]]:
    return {tuple(tokens.tolist()) for _, tokens in cache.sequences()}


def prompts(num: int) -> list[list[int]]:
    """Prompts that share prefixes of any length."""
    random, made = Random(3), list[list[int]]()
    for _ in range(num):
        base = random.choice(made)[: random.randrange(60)] if made and random.random() < 0.7 else []
        made.append(base + [random.randrange(3, 120) for _ in range(random.randrange(1, 30))])
    return made


def test_who_follows_the_events_knows_what_each_memory_has(
    model: CausalLM, tmp_path: Path, router: Router
) -> None:
    runtime = EngineRuntime(model, num_pages=60, host_pages=40, max_context=120)
    assert runtime.tiers is not None
    host = runtime.tiers.host.cache
    events = KvEvents(f"ipc://{tmp_path}/events", f"ipc://{tmp_path}/replay")
    try:
        events.watch(runtime.cache.tree, MEDIUM_DEVICE)
        events.watch(host.tree, MEDIUM_HOST)
        for i, prompt in enumerate(prompts(40)):
            runtime.run(prompt, branch=i % 9 + 1)
            if i % 4 == 3:
                runtime.finish()
        assert runtime.cache.counters.evicted_pages > 0
        assert runtime.tiers.fence(10)
        assert cached(runtime.cache)
        assert cached(host)
        router.read_until(
            lambda: (
                router.sequences(MEDIUM_DEVICE) == cached(runtime.cache)
                and router.sequences(MEDIUM_HOST) == cached(host)
            )
        )
        runtime.cache.clear()
        router.read_until(lambda: not router.sequences(MEDIUM_DEVICE))
        assert router.sequences(MEDIUM_HOST) == cached(host)
    finally:
        events.close()


def test_a_runtime_publishes_under_its_topic_and_begins_with_nothing(tmp_path: Path) -> None:
    router = Router(tmp_path, "kv@node-1")
    options = {
        "kv_events": f"ipc://{tmp_path}/events",
        "kv_events_replay": f"ipc://{tmp_path}/replay",
        "kv_events_topic": "kv@node-1",
    }
    try:
        with rt.Runtime(memory="128MiB", **options) as backend:

            @rt.function
            def ask(s: rt.ProgramState, text: str) -> None:
                s += text + rt.gen("answer", max_tokens=2)

            ask.run("A text that is long enough to fill a page of sixteen tokens.", backend=backend)
            router.read_until(lambda: bool(router.sequences(MEDIUM_DEVICE)))
            (tokens,) = router.sequences(MEDIUM_DEVICE)
            assert len(tokens) == 16
            assert router.num_cleared == 1
            backend.flush_cache()
            router.read_until(lambda: not router.sequences(MEDIUM_DEVICE))
    finally:
        router.close()


def test_an_address_that_cannot_be_bound_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_events='nowhere'"):
        KvEvents("nowhere")
    with pytest.raises(ConfigError, match=r"kv_events_replay='tcp://1\.2\.3\.4:1'"):
        KvEvents("tcp://127.0.0.1:*", "tcp://1.2.3.4:1")
    with pytest.raises(ConfigError, match="give that endpoint too"):
        rt.Runtime(kv_events_topic="x")
