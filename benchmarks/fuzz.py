"""Hostile frames and killed clients against a runtime process.

    python benchmarks/fuzz.py [--frames 10000] [--clients 500]

Four good clients run greedy programs, first alone, then while random and mutated frames arrive:
their outputs have to be the same, the runtime has to live and its memory to stay bounded. Then
clients are killed in the middle of their streams: in the end no branch, no call and no KV page may
be left that nobody owns. Exits with 1 when one of that is not so.

The model runs in float32: in bfloat16 two tokens can be equally likely, and which one comes depends
on what else is in the batch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import zmq

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from radixrt.protocol import (  # noqa: E402
    TAGS,
    Append,
    Cancel,
    Close,
    Constraint,
    Credit,
    Failed,
    Finished,
    Generate,
    Hello,
    Message,
    Open,
    Part,
    Ping,
    Read,
    Reply,
    Sampling,
    Select,
    Stats,
    encode,
)
from radixrt.transport import ZmqTransport  # noqa: E402

NUM_GOOD_CLIENTS = 4
FRAMES_A_CONNECTION = 50
CLIENTS_A_PROCESS = 25


# ---------------------------------------------------------------- good clients


def good_client(endpoint: str, number: int, rounds: int) -> list[str]:
    """Run a program ``rounds`` times and return what it generated."""
    transport = ZmqTransport(endpoint, timeout_s=60.0)
    transport.send([Hello(client=f"good {number}")])
    outputs = []
    try:
        transport.receive(60.0)
        for turn in range(rounds):
            branch, fork = 100 * turn + 1, 100 * turn + 2
            sampling = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
            transport.send(
                [
                    Open(branch),
                    Append(branch, (Part("text", f"Client {number}, turn {turn % 7}: "),)),
                    Generate(branch, branch, sampling),
                    Open(fork, parent=branch),
                    Append(fork, (Part("text", " and then"),)),
                    Generate(fork, fork, sampling, stream=True),
                    Close(fork),
                    Close(branch),
                ]
            )
            found: dict[int, str] = {}
            deadline = time.monotonic() + 120
            while len(found) < 2:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"good client {number} has waited 120 s")
                for message in transport.receive(1.0):
                    if isinstance(message, Finished):
                        found[message.call] = message.outputs[0].text
                    elif isinstance(message, Failed):
                        found[message.call or 0] = f"FAILED {message.code}: {message.message}"
            outputs.append(f"{found.get(branch)} | {found.get(fork)}")
    finally:
        transport.close()
    return outputs


def good_clients(endpoint: str, rounds: int) -> list[list[str]]:
    """Run all good clients at the same time."""
    outputs: list[list[str]] = [[] for _ in range(NUM_GOOD_CLIENTS)]

    def run(number: int) -> None:
        try:
            outputs[number] = good_client(endpoint, number, rounds)
        except Exception as error:
            outputs[number] = [repr(error)]

    threads = [threading.Thread(target=run, args=(n,)) for n in range(NUM_GOOD_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outputs


# ---------------------------------------------------------------- hostile frames


def hostile_frame(rng: random.Random) -> bytes:
    """Return random bytes, a mutated message, JSON under a known tag, or an unexpected message."""
    kind = rng.random()
    if kind < 0.2:
        return rng.randbytes(rng.randrange(200))
    if kind < 0.6:
        return _mutated(rng, encode(_message(rng)))
    if kind < 0.8:
        tag = rng.choice(list(TAGS))
        names = list(TAGS[tag].__dataclass_fields__)
        fields = {rng.choice([*names, "extra"]): _json(rng, 3) for _ in range(rng.randrange(5))}
        return orjson.dumps([tag, fields])
    return encode(_message(rng))


def _mutated(rng: random.Random, frame: bytes) -> bytes:
    data = bytearray(frame)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(3)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + rng.randrange(1, 9)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


def _message(rng: random.Random) -> Message:
    call, branch = rng.choice([0, 1, 2, 3, -1, 2**40]), rng.choice([0, 1, 2, 3, 2**50])
    number = rng.choice([-1.0, 0.0, 0.5, 1.0, 1e30, -1e30])
    sampling = Sampling(
        max_tokens=rng.choice([-1, 0, 1, 5, 2**31, 2**40]),
        n=rng.choice([0, 1, 2, 10**6]),
        temperature=number,
        top_p=number,
        top_k=rng.choice([-1, 0, 5]),
        seed=rng.choice([None, -1, 1, 2**62]),
        stop=rng.choice([(), ("",), ("a",), ("x" * 10_000,)]),
        stop_regex=rng.choice([(), ("(",), ("(a+)+$",), ("a*",)]),
        logit_bias=rng.choice([(), ((-1, 1.0),), ((3, 1e30),)]),
        return_logprob=rng.random() < 0.5,
        top_logprobs_num=rng.choice([0, 3, 10**9]),
        logprob_start_len=rng.choice([-1, 0, 10**9]),
    )
    ids = tuple(rng.choice([-1, 0, 5, 300, 2**31, 2**53]) for _ in range(rng.randrange(4)))
    part = Part(
        rng.choice(["text", "tokens", "role_begin", "role_end"]),
        rng.choice(["", "user", "assistant", "x", "é🎉", "y" * 5000]),
        ids,
    )
    return rng.choice(
        [
            Hello(),
            Hello(version=rng.randrange(-5, 5)),
            Open(branch, rng.choice([None, 0, 1, 2, 7])),
            Append(branch, (part,) * rng.randrange(4)),
            Generate(
                call, branch, sampling, stream=rng.random() < 0.5, credit=rng.randrange(-2, 3)
            ),
            Generate(call, branch, Sampling(max_tokens=3), Constraint("regex", "(")),
            Generate(call, branch, Sampling(max_tokens=50), stream=True, deadline_s=number),
            Select(call, branch, rng.choice([(), ("",), ("a", "b"), ("a",) * 2000])),
            Close(branch),
            Cancel(call),
            Credit(call, rng.choice([-(2**40), 0, 2**40])),
            Read(call, branch),
            Stats(call),
            Ping(rng.randrange(-(2**40), 2**40)),
            Reply(call),
        ]
    )


def _json(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(7 if depth else 5)
    if kind == 5:
        return [_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {rng.choice("abc"): _json(rng, depth - 1) for _ in range(rng.randrange(3))}
    return [None, True, rng.randrange(-(2**53), 2**53), rng.random() * 1e300, "text"][kind]


def send_hostile_frames(endpoint: str, count: int, seed: int) -> int:
    """Send frames over many connections; return how many answers came."""
    rng = random.Random(seed)
    context = zmq.Context()
    answers = 0
    try:
        for first in range(0, count, FRAMES_A_CONNECTION):
            with context.socket(zmq.DEALER) as socket:
                socket.linger = 1000
                socket.connect(endpoint)
                if rng.random() < 0.7:
                    socket.send(encode(Hello()))
                for _ in range(min(FRAMES_A_CONNECTION, count - first)):
                    frames = [hostile_frame(rng) for _ in range(rng.choice([1, 1, 1, 3]))]
                    socket.send_multipart(frames)
                    while socket.poll(0):
                        answers += len(socket.recv_multipart())
                while socket.poll(5):
                    answers += len(socket.recv_multipart())
    finally:
        context.destroy(linger=1000)
    return answers


# ---------------------------------------------------------------- killed clients


def killed_clients(endpoint: str, count: int) -> None:
    """Let ``count`` clients stream, in processes that are killed in the middle of it."""
    while count > 0:
        now = min(count, CLIENTS_A_PROCESS)
        count -= now
        command = [sys.executable, __file__, "--streams", str(now), "--endpoint", endpoint]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as output:
            said = output.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert said == b"streaming\n", said


def stream_for_ever(endpoint: str, count: int) -> None:
    """Be ``count`` clients that stream; say so on standard output once all of them do."""
    context = zmq.Context()
    sockets = []
    long = Sampling(max_tokens=400, temperature=1.0, ignore_eos=True)
    for number in range(count):
        socket = context.socket(zmq.DEALER)
        socket.connect(endpoint)
        text = Part("text", f"{os.getpid()} {number} tells a story: ")
        program = [Hello(), Open(1), Append(1, (text,)), Generate(1, 1, Sampling(max_tokens=2))]
        program += [Open(2, parent=1), Generate(2, 2, long, stream=True), Generate(3, 1, long)]
        socket.send_multipart([encode(message) for message in program])
        sockets.append(socket)
    for socket in sockets:
        for _ in range(3):  # welcome, the first call, a chunk
            if not socket.poll(60_000):
                sys.exit("no answer")
            socket.recv_multipart()
    print("streaming", flush=True)
    time.sleep(600)


# ---------------------------------------------------------------- the runtime


def stats(endpoint: str) -> dict[str, Any]:
    """Return the runtime's counters."""
    transport = ZmqTransport(endpoint, timeout_s=60.0)
    try:
        transport.send([Hello(), Stats(1)])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for message in transport.receive(1.0):
                if isinstance(message, Reply):
                    return message.data
        raise TimeoutError("no counters within 60 s")
    finally:
        transport.close()


def leaks(counters: dict[str, Any]) -> dict[str, Any]:
    """Return what a runtime still holds that only asks for its counters."""
    left = {
        name: counters[name]
        for name in ("branches", "running", "waiting", "open_calls", "parked_branches", "leases")
        if counters.get(name)
    }
    if counters.get("clients", 1) > 1:
        left["clients"] = counters["clients"] - 1
    if "kv_pages" in counters:
        lost = counters["kv_pages"] - counters["kv_pages_free"] - counters["kv_pages_cached"]
        locked = counters["kv_pages_cached"] - counters["kv_pages_evictable"]
        left.update({k: v for k, v in (("lost pages", lost), ("locked pages", locked)) if v})
    return left


def settled(endpoint: str, timeout_s: float = 60.0) -> dict[str, Any]:
    """Wait until nothing is left; return what is."""
    deadline = time.monotonic() + timeout_s
    while (left := leaks(stats(endpoint))) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def memory_mib(pid: int) -> float:
    """Return the resident memory of a process and its children."""
    total = 0
    for task in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((task / "stat").read_text().rpartition(")")[2].split()[1])
            if int(task.name) == pid or parent == pid:
                total += int((task / "statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    endpoint: str


@contextlib.contextmanager
def serving(memory: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as directory:
        ready = Path(directory) / "ready"
        command = [sys.executable, "-m", "radixrt", "serve", "--no-http", "--memory", memory]
        command += ["--dtype", "float32", "--max-clients", "2000", "--ready-file", str(ready)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            while not ready.exists():
                if process.poll() is not None:
                    sys.exit("the runtime did not start")
                time.sleep(0.05)
            yield Server(process, ready.read_text().strip())
        finally:
            process.terminate()
            process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=60, help="of each good client's program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--streams", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.streams:
        stream_for_ever(options.endpoint, options.streams)
        return
    ok = True
    with serving(options.memory) as server:
        quiet = good_clients(server.endpoint, options.rounds)
        before = memory_mib(server.process.pid)
        answers: list[int] = []
        noise = threading.Thread(
            target=lambda: answers.append(
                send_hostile_frames(server.endpoint, options.frames, options.seed)
            )
        )
        noise.start()
        noisy, rounds = good_clients(server.endpoint, options.rounds), 1
        while noise.is_alive():
            if good_clients(server.endpoint, options.rounds) != quiet:
                noisy = []
            rounds += 1
        noise.join()
        is_alive = server.process.poll() is None
        left = settled(server.endpoint) if is_alive else {}
        after = memory_mib(server.process.pid)
        same = noisy == quiet and not any("FAILED" in o for outputs in quiet for o in outputs)
        ok &= same and is_alive and not left
        programs = rounds * NUM_GOOD_CLIENTS * options.rounds
        for one, other in zip(quiet, noisy, strict=False):
            for a, b in zip(one, other, strict=False):
                if a != b:
                    print(f"quiet  {a!r}\nnoisy  {b!r}")
        print(f"hostile frames            {options.frames}, answered with {sum(answers)} messages")
        print(f"good clients' programs    {programs}, outputs {'unchanged' if same else 'CHANGED'}")
        print(
            f"runtime                   {'alive' if is_alive else 'DEAD'}, left behind: {left or 0}"
        )
        print(f"memory, both processes    {before:.0f} MiB before, {after:.0f} MiB after")
        if is_alive:
            killed_clients(server.endpoint, options.clients)
            left = settled(server.endpoint)
            again = good_clients(server.endpoint, options.rounds) == quiet
            ok &= again and not left
            print(f"clients killed mid-stream {options.clients}, left behind: {left or 0}")
            print(f"good clients after it     outputs {'unchanged' if again else 'CHANGED'}")
            print(f"memory, both processes    {memory_mib(server.process.pid):.0f} MiB")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
