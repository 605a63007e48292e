"""What the cache stores and gives up, told to routers: the KV events that vLLM publishes.

A PUB socket sends ``[topic, sequence number, batch]``: eight bytes, big-endian, that count from 0,
and msgpack. A batch is the array ``[time, events, rank]``, an event an array that begins with its
name. Who has missed batches asks the replay socket (ROUTER) with the first number it wants and gets
``[number, batch]`` for each that is still kept, then number -1 and an empty batch.

Here a block is a full page. Its hash is a number that names the whole prefix up to its end, the
namespace included; numbers and tokens say nothing of other tenants' prompts to who does not know
them already, but tokens are sent as they are: let only routers connect.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque

import msgspec
import zmq

from radixrt.cache.node import TOKEN_BYTES, Node, decode
from radixrt.cache.tree import Tree
from radixrt.errors import ConfigError
from radixrt.runtime.endpoints import is_loopback

log = logging.getLogger(__name__)

MEDIUM_DEVICE = "GPU"
MEDIUM_HOST = "CPU"
"""What vLLM calls the memories; the device's is "GPU" on a CPU as well."""

MAX_KEPT = 10_000
"""Batches that can be asked for again."""

MAX_UNREAD = 100_000
"""Batches that wait for a slow subscriber; later ones are lost to it, and it can tell."""

_MAX_EVENTS = 1024
"""Events of one batch."""

_WAIT_S = 0.05
_CLOSE_S = 2.0
_END = (-1).to_bytes(8, "big", signed=True)


class _Event(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """An array whose first element is the name of the class."""


class BlockStored(_Event, frozen=True):
    """Blocks that follow each other are cached; the first follows ``parent_block_hash`` (None: it
    is the first of its prompt). ``token_ids`` are those of all of them."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None


class BlockRemoved(_Event, frozen=True):
    """Blocks are no longer cached."""

    block_hashes: list[int]
    medium: str | None


class AllBlocksCleared(_Event, frozen=True):
    """Nothing is cached, in any memory: the engine has begun."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``ts`` is seconds since 1970."""

    ts: float
    events: list[Event]
    data_parallel_rank: int | None = 0


class KvEvents:
    """Publishes the events of trees on a thread of its own; the trees' thread only queues them.

    The first batch says ``AllBlocksCleared``: what subscribers knew of an earlier engine is over.
    """

    def __init__(self, endpoint: str, replay_endpoint: str = "", topic: str = "") -> None:
        """Bind both sockets; raises ``ConfigError``."""
        if endpoint.startswith("tcp://") and not is_loopback(endpoint):
            log.warning(
                "kv_events=%s: who can reach that address reads the tokens of all prompts", endpoint
            )
        self._topic = topic.encode()
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=MAX_KEPT)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            self._publisher = self._bound(zmq.PUB, "kv_events", endpoint)
            self._replayer = (
                self._bound(zmq.ROUTER, "kv_events_replay", replay_endpoint)
                if replay_endpoint
                else None
            )
        except ConfigError:
            self._context.destroy(linger=0)
            raise
        self.put(AllBlocksCleared())
        self._thread = threading.Thread(target=self._run, name="radixrt-kv-events", daemon=True)
        self._thread.start()

    def watch(self, tree: Tree, medium: str) -> None:
        """Publish what happens to a tree from now on. Its pages have to be hashed by its policy."""
        tree.watchers += (_TreeEvents(tree, medium, self),)

    def put(self, event: Event) -> None:
        """Queue an event."""
        self._queue.put(event)

    def close(self) -> None:
        """Send what is queued and end. Idempotent."""
        self._queue.put(None)
        self._thread.join(_CLOSE_S)
        self._context.destroy(linger=int(1000 * _WAIT_S))

    def _bound(self, kind: int, option: str, endpoint: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.set_hwm(MAX_UNREAD)
        socket.linger = 0
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(
                f"{option}={endpoint!r} cannot be bound: {error}; use tcp://HOST:PORT or ipc://PATH"
            ) from error
        return socket

    def _run(self) -> None:
        number, is_over = 0, False
        encoder = msgspec.msgpack.Encoder()
        while not is_over:
            events = self._gathered()
            is_over = None in events
            told = [event for event in events if event is not None]
            if told:
                batch = encoder.encode(EventBatch(time.time(), told))
                self._publisher.send_multipart([self._topic, number.to_bytes(8, "big"), batch])
                self._kept.append((number, batch))
                number += 1
            self._replay()

    def _gathered(self) -> list[Event | None]:
        """Wait for an event, not for long; return it with those that are there too."""
        events: list[Event | None] = []
        try:
            events.append(self._queue.get(timeout=_WAIT_S))
            while len(events) < _MAX_EVENTS:
                events.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        return events

    def _replay(self) -> None:
        socket = self._replayer
        while socket is not None and socket.poll(0):
            frames = socket.recv_multipart()
            if len(frames) != 3 or len(frames[2]) != 8:
                log.warning("kv_events_replay: a request is [empty, first number in eight bytes]")
                continue
            client, _, wanted = frames
            first = int.from_bytes(wanted, "big")
            for number, batch in self._kept:
                if number >= first:
                    socket.send_multipart([client, b"", number.to_bytes(8, "big"), batch])
            socket.send_multipart([client, b"", _END, b""])


class _TreeEvents:
    """Turns what one tree tells (see ``Watcher``) into events of full pages."""

    def __init__(self, tree: Tree, medium: str, events: KvEvents) -> None:
        assert tree.known is not None, "the tree's pages have no hashes"
        self._tree = tree
        self._medium = medium
        self._events = events

    def appended(self, node: Node, before: int, key: bytes) -> None:
        """Blocks are stored; a last page that is not full is no block."""
        page_bytes = self._tree.page_bytes
        full = key[: len(key) // page_bytes * page_bytes]
        if not full:
            return
        hashes: list[int] = node.last_hashes(len(full) // page_bytes).tolist()
        parent = None if before == _root_of(node).chain else before
        tokens: list[int] = decode(full).tolist()
        page_size = page_bytes // TOKEN_BYTES
        self._events.put(BlockStored(hashes, parent, tokens, page_size, None, self._medium, None))

    def cut(self, node: Node, num_pages: int) -> None:
        """Blocks are removed."""
        page_bytes = self._tree.page_bytes
        if len(node.key) < page_bytes:
            return
        self._events.put(BlockRemoved(node.last_hashes(num_pages).tolist(), self._medium))

    def cleared(self) -> None:
        """Each block that goes is told as well."""

    def split(self, upper: Node, lower: Node) -> None:
        """Blocks stay where they are."""

    def merged(self, upper: Node, lower: Node) -> None:
        """Blocks stay where they are."""

    def changed(self, node: Node) -> None:
        """Blocks stay where they are."""


def _root_of(node: Node) -> Node:
    while node.parent is not None:
        node = node.parent
    return node
