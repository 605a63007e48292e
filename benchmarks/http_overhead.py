"""What HTTP costs over ZeroMQ: throughput of concurrent streams and time to the first token.

    python benchmarks/http_overhead.py [--streams 64] [--tokens 128] [--rounds 4]

One server with the shipped model serves both ways at once; rounds over ZeroMQ and over HTTP
alternate, so that what else the machine does falls on both. Every round is ``--streams`` clients
that each stream ``--requests`` answers, one after the other, of ``--tokens`` tokens to prompts of
their own. The load over ZeroMQ is the package's own transport, the load over HTTP raw sockets that
look for the end of an answer; what each costs the machine itself is printed beside the result,
because all share its cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from radixrt.protocol import (
    Append,
    Chunk,
    Close,
    Failed,
    Finished,
    Generate,
    Hello,
    Open,
    Part,
    Sampling,
    Welcome,
)
from radixrt.transport import ZmqTransport

MODEL_NAME = "nano"
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_SERIAL = itertools.count()


@dataclass
class Round:
    """What a round of load came to. Times in seconds."""

    wall: float = 0.0
    cpu: float = 0.0
    tokens: int = 0
    ttfts: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall


def prompt() -> str:
    """Return a text that nothing before it shares more than a few tokens with."""
    serial = next(_SERIAL)
    digits = f"{serial:06d}"
    return " ".join(WORDS[int(d)] for d in digits) + " The quick brown fox asks what comes next:"


@contextmanager
def served() -> Iterator[tuple[str, str, int]]:
    """Yield the endpoint, the address and the process id of a server."""
    with tempfile.TemporaryDirectory() as directory:
        ready = Path(directory) / "ready"
        command = [sys.executable, "-m", "radixrt", "serve", "--port", "0", "--ready-file", ready]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit("the server ended while it started")
                time.sleep(0.05)
            endpoint, url = ready.read_text().split()
            yield endpoint, url, process.pid
        finally:
            process.terminate()
            process.wait(20)


# ---------------------------------------------------------------- ZeroMQ


class OverZmq:
    """Load through the package's own transport."""

    def __init__(self, endpoint: str) -> None:
        self._transport = ZmqTransport(endpoint)
        self._transport.send([Hello()])
        self._ids = itertools.count(1)
        while not any(isinstance(m, Welcome) for m in self._transport.receive(1.0)):
            pass

    def run(self, streams: int, requests: int, tokens: int) -> Round:
        result = Round()
        left = streams * (requests - 1)
        begun: dict[int, float] = {}
        seen: set[int] = set()
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(streams):
            self._begin(begun, tokens)
        while begun:
            for message in self._transport.receive(10.0):
                if isinstance(message, Chunk):
                    if message.call not in seen:
                        seen.add(message.call)
                        result.ttfts.append(time.perf_counter() - begun[message.call])
                elif isinstance(message, Finished):
                    result.tokens += len(message.outputs[0].token_ids)
                    del begun[message.call]
                    if left:
                        left -= 1
                        self._begin(begun, tokens)
                elif isinstance(message, Failed):
                    raise SystemExit(f"a call failed: {message.message}")
        result.wall = time.perf_counter() - began
        result.cpu = time.process_time() - cpu
        return result

    def _begin(self, begun: dict[int, float], tokens: int) -> None:
        call = next(self._ids)
        sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        begun[call] = time.perf_counter()
        self._transport.send(
            [
                Open(call),
                Append(call, (Part("text", prompt()),)),
                Generate(call, call, sampling, stream=True),
                Close(call, keep=True),
            ]
        )

    def close(self) -> None:
        self._transport.close()


# ---------------------------------------------------------------- HTTP


class OverHttp:
    """Load through bare sockets that read no more of an answer than where it ends."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._address = address.hostname, address.port

    def run(self, streams: int, requests: int, tokens: int) -> Round:
        result = Round()
        selector = selectors.DefaultSelector()
        connections = [_Connection(self._address, tokens, requests) for _ in range(streams)]
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        began, cpu = time.perf_counter(), time.process_time()
        for connection in connections:
            connection.send()
        num_open = streams
        while num_open:
            for key, _ in selector.select():
                num_open -= key.data.read(result)
        result.wall = time.perf_counter() - began
        result.cpu = time.process_time() - cpu
        for connection in connections:
            connection.socket.close()
        return result


class _Connection:
    """One client: sends a request, reads its answer, sends the next one."""

    def __init__(self, address: tuple[str | None, int | None], tokens: int, requests: int) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tokens = tokens
        self._left = requests
        self._started = 0.0
        self._is_first = True
        self._last = b""

    def send(self) -> None:
        body = json.dumps(
            {"model": MODEL_NAME, "prompt": prompt(), "max_tokens": self._tokens,
             "temperature": 0, "ignore_eos": True, "stream": True,
             "stream_options": {"include_usage": True}}
        ).encode()  # fmt: skip
        head = (
            "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._left -= 1
        self._is_first = True
        self._started = time.perf_counter()
        self.socket.sendall(head.encode() + body)

    def read(self, result: Round) -> bool:
        """Read what is there; True when the last answer is whole."""
        data = self.socket.recv(65536)
        if self._is_first and b"data: " in data:
            result.ttfts.append(time.perf_counter() - self._started)
            self._is_first = False
        if not data.endswith(b"0\r\n\r\n"):
            if not data:
                raise SystemExit(f"the connection ended after {self._last[-300:]!r}")
            self._last = data
            return False
        last = self._last + data
        usage = last[last.rindex(b'"usage":') + 8 : last.rindex(b"}\n\ndata: [DONE]")]
        result.tokens += json.loads(usage)["completion_tokens"]
        if not self._left:
            return True
        self.send()
        return False


# ---------------------------------------------------------------- the result


def cpu_of(pid: int) -> dict[str, float]:
    """Return the processor seconds of a server's processes, by what each does."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for other in [pid, *children(pid)]:
        stat = Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()
        line = Path(f"/proc/{other}/cmdline").read_bytes().decode().replace("\0", " ")
        name = "gateway" if "radixrt.gateway" in line else "frontend" if other == pid else "engine"
        found[name] = found.get(name, 0.0) + (int(stat[11]) + int(stat[12])) / ticks
    return found


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--singles", type=int, default=100)
    options = parser.parse_args()
    with served() as (endpoint, url, pid):
        ways = {"ZeroMQ": OverZmq(endpoint), "HTTP": OverHttp(url)}
        for way in ways.values():
            way.run(8, 1, 16)
        loaded: dict[str, list[Round]] = {name: [] for name in ways}
        spent: dict[str, dict[str, float]] = {name: {} for name in ways}
        single: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds):
            # What comes first in one round comes second in the next.
            for name in sorted(ways, reverse=bool(number % 2)):
                before = cpu_of(pid)
                result = ways[name].run(options.streams, options.requests, options.tokens)
                loaded[name].append(result)
                for part, seconds in cpu_of(pid).items():
                    used = seconds - before.get(part, 0.0)
                    spent[name][part] = spent[name].get(part, 0.0) + used
        for number in range(-(-options.singles // 10)):
            for name in sorted(ways, reverse=bool(number % 2)):
                single[name] += ways[name].run(1, 10, 4).ttfts  # over one connection
        ways["ZeroMQ"].close()

    print(
        f"{options.streams} streams × {options.requests} requests of {options.tokens} tokens, "
        f"{options.rounds} rounds, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    for name, rounds in loaded.items():
        total = sum(r.tokens for r in rounds)
        speed = total / sum(r.wall for r in rounds)
        parts = {"load": sum(r.cpu for r in rounds)} | spent[name]
        costs = ", ".join(f"{part} {1e6 * s / total:.0f}" for part, s in parts.items())
        ttft = statistics.median(itertools.chain(*(r.ttfts for r in rounds)))
        print(
            f"{name:>7}: {speed:8.0f} tokens/s; median TTFT under load {1000 * ttft:.1f} ms, "
            f"alone {1000 * statistics.median(single[name]):.2f} ms; "
            f"processor µs a token: {costs}"
        )
    zmq, http = (
        sum(r.tokens for r in loaded[name]) / sum(r.wall for r in loaded[name])
        for name in ("ZeroMQ", "HTTP")
    )
    alone = [statistics.median(single[name]) for name in ("ZeroMQ", "HTTP")]
    print(
        f"HTTP costs {100 * (1 - http / zmq):.1f} % of throughput and "
        f"{1000 * (alone[1] - alone[0]):.2f} ms of the median TTFT of a lone request"
    )


if __name__ == "__main__":
    main()
