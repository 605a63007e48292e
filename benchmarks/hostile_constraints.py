"""Hostile constraints while good streams run.

    python benchmarks/hostile_constraints.py [--constraints 2000] [--streams 8] [--in-process]

A server runs the shipped model. Eight clients stream greedy generations, one after another: at
first alone, then while another client, in a process of its own, sends constraints made to hurt
(deep nesting, huge repeats, catastrophic patterns, bad references, exponential schemas, text that
is no UTF-8), sixteen at a time. Reports the longest and the p99 time between two tokens of the
streams in both phases, and what became of the constraints. ``--in-process``: all of it in one
process, the clients as well. Prints one JSON object; exits with 1 when an answer is missing or has
no type.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz import serving

import radixrt
from radixrt.config import RuntimeConfig
from radixrt.errors import FAILURES
from radixrt.protocol import (
    Append,
    Chunk,
    Close,
    Constraint,
    Failed,
    Finished,
    Generate,
    Hello,
    Open,
    Part,
    Sampling,
    ToRuntime,
    Welcome,
)
from radixrt.runtime.local import LocalRuntime
from radixrt.transport import Transport, ZmqTransport

MODEL = Path(radixrt.__file__).parent / "models" / "nano"


def hostile(number: int, rng: np.random.Generator) -> Constraint:
    """Return the constraint of a number."""
    n = int(rng.integers(2, 3000))
    small = int(rng.integers(2, 40))
    deep = {"items": {}}
    for _ in range(small):
        deep = {"type": "array", "items": deep}
    doubling = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(small)}
    properties = {f"p{i}": {"type": "string", "pattern": "a{1,50}b{1,50}"} for i in range(n)}
    makers = [
        lambda: Constraint("regex", "(" * n + "a" + ")" * n),
        lambda: Constraint("regex", f"(a{{1,{n}}}){{1,{n}}}b"),
        lambda: Constraint("regex", f"(x+x+)+y{{{n}}}|(a|aa)+$"),
        lambda: Constraint("regex", f"[^a]{{{n}}}(.|\\n)*?(foo|bar){{{n}}}"),
        lambda: Constraint("regex", "(?=a)b(?<!c)\\1"),
        lambda: Constraint("regex", "\\p{L}{" + f"{n}" + "}"),
        lambda: Constraint("regex", "a\ud800b"),
        lambda: Constraint("json_schema", '{"items":' * n + "{}" + "}" * n),
        lambda: Constraint("json_schema", "[" * n * 20),
        lambda: Constraint("json_schema", json.dumps(deep)),
        lambda: Constraint("json_schema", json.dumps({"$ref": "#"})),
        lambda: Constraint("json_schema", json.dumps({"$ref": f"https://x.invalid/{n}"})),
        lambda: Constraint("json_schema", json.dumps({"$ref": "#/$defs/missing"})),
        lambda: Constraint(
            "json_schema",
            json.dumps({"$ref": "#/$defs/d0", "$defs": {**doubling, f"d{small}": {}}}),
        ),
        lambda: Constraint("json_schema", json.dumps({"type": "string", "minLength": n * 100})),
        lambda: Constraint("json_schema", json.dumps({"type": "object", "properties": properties})),
        lambda: Constraint(
            "json_schema",
            json.dumps({"oneOf": [{"pattern": f"^(a|b|ab){{{i},{n}}}$"} for i in range(small)]}),
        ),
        lambda: Constraint(
            "json_schema",
            json.dumps({"type": "array", "minItems": n, "items": {"enum": [*range(n)]}}),
        ),
        lambda: Constraint("json_schema", json.dumps({"type": n, "enum": 5, "required": "x"})),
        lambda: Constraint("json_schema", json.dumps({"multipleOf": 1e-300, "maximum": 1e308})),
        lambda: Constraint("json_schema", '{"type":"string","pattern":"^(a|a|aa)+$"}'),
        lambda: Constraint("grammar", "start: " + "(" * n + '"a"' + ")" * n),
        lambda: Constraint("grammar", "start: start start | start\n" * small),
        lambda: Constraint("grammar", 'start: (("a"?){' + str(n) + "}){" + str(n) + "}"),
        lambda: Constraint("gbnf", "root ::= root root | " + '"a" ' * n),
        lambda: Constraint("gbnf", "root ::= " + "(" * n),
        lambda: Constraint("gbnf", "root ::= [\\u0000-\\uffff]{" + str(n) + "} root?"),
        lambda: Constraint("ebnf", "".join(f"r{i} ::= r{i + 1} | 'x'\n" for i in range(n))),
        lambda: Constraint("choices", json.dumps(["x" * i for i in range(1, small * 20)])),
        lambda: Constraint("tools", json.dumps({"tools": [{"name": "f", "parameters": deep}]})),
    ]
    return makers[number % len(makers)]()


class Stream(threading.Thread):
    """Streams generations one after another and notes when tokens come."""

    def __init__(self, transport: Transport, number: int) -> None:
        super().__init__(daemon=True)
        self.transport = transport
        self.number = number
        self.gaps: list[tuple[float, float]] = []
        self.failures: list[str] = []
        self.is_over = False

    def run(self) -> None:
        self.transport.send([Hello()])
        for call in itertools.count(1):
            if self.is_over:
                return
            text = f"Question {self.number}: what do people in Lisbon do on day {call}?"
            self.transport.send(
                [
                    Open(call),
                    Append(call, (Part("text", text),)),
                    Generate(
                        call,
                        call,
                        Sampling(max_tokens=64, temperature=0.0, ignore_eos=True),
                        stream=True,
                    ),
                    Close(call),
                ]
            )
            last = 0.0
            is_running = True
            while is_running:
                for message in self.transport.receive(5.0):
                    now = time.perf_counter()
                    if isinstance(message, Chunk):
                        if last:
                            self.gaps.append((now, now - last))
                        last = now
                    elif isinstance(message, Failed):
                        self.failures.append(message.message)
                        is_running = False
                    elif isinstance(message, Finished):
                        is_running = False


def hostile_call(number: int, rng: np.random.Generator) -> list[ToRuntime]:
    """Return the messages of one call."""
    return [
        Open(number),
        Append(number, (Part("text", "x"),)),
        Generate(
            number,
            number,
            Sampling(max_tokens=24, temperature=1.0, seed=number),
            constraint=hostile(number, rng),
        ),
        Close(number),
    ]


def attack(transport: Transport, count: int, seed: int) -> Counter[str]:
    """Send hostile constraints, sixteen at a time, and count how they end."""
    rng = np.random.default_rng(seed)
    transport.send([Hello()])
    ends: Counter[str] = Counter()
    open_calls: set[int] = set()
    numbers = iter(range(1, count + 1))
    is_done = False
    while not is_done or open_calls:
        while len(open_calls) < 16 and not is_done:
            number = next(numbers, None)
            if number is None:
                is_done = True
                break
            try:
                transport.send(hostile_call(number, rng))
            except TypeError:
                ends["not sendable"] += 1  # half a character; in one process nothing is encoded
                continue
            open_calls.add(number)
        for message in transport.receive(1.0):
            if isinstance(message, Finished):
                ends["finished"] += 1
                open_calls.discard(message.call)
            elif isinstance(message, Failed) and message.call is not None:
                ends[message.code if message.code in FAILURES else f"untyped {message.code}"] += 1
                open_calls.discard(message.call)
            elif not isinstance(message, Welcome | Chunk | Failed):
                ends[f"unexpected {type(message).__name__}"] += 1
    return ends


def gaps_ms(streams: list[Stream], begin: float, end: float) -> dict[str, float]:
    """Return statistics of the times between tokens within a span."""
    found = [gap * 1e3 for s in streams for at, gap in s.gaps if begin + 1 <= at <= end]
    return {
        "tokens": len(found),
        **{f"p{p:g}": round(float(np.percentile(found, p)), 2) for p in (50, 99, 99.9, 100)},
    }


def attack_in_a_process(endpoint: str, count: int, seed: int) -> Counter[str]:
    """``attack`` by another process."""
    command = [sys.executable, __file__, "--attack", endpoint]
    command += ["--constraints", str(count), "--seed", str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return Counter(json.loads(done.stdout))


def measure(
    transport: Callable[[], Transport], assault: Callable[[], Counter[str]], options: Any
) -> dict[str, Any]:
    """Return what became of the streams and of the constraints."""
    streams = [Stream(transport(), number) for number in range(options.streams)]
    for stream in streams:
        stream.start()
    time.sleep(2.0)
    began = time.perf_counter()
    time.sleep(options.seconds)
    quiet = time.perf_counter()
    ends = assault()
    over = time.perf_counter()
    for stream in streams:
        stream.is_over = True
    for stream in streams:
        stream.join(timeout=30)
    return {
        "constraints": sum(ends.values()),
        "ends": dict(ends),
        "seconds": round(over - quiet, 1),
        "failures_of_good_streams": [f for stream in streams for f in stream.failures],
        "gap_ms_alone": gaps_ms(streams, began, quiet),
        "gap_ms_attacked": gaps_ms(streams, quiet, over),
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraints", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--in-process", action="store_true")
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    options = parser.parse_args()
    count, seed = options.constraints, options.seed
    if options.attack:
        transport = ZmqTransport(options.attack, timeout_s=60.0)
        print(json.dumps(attack(transport, count, seed)))
        transport.close()
        return
    if options.in_process:
        runtime = LocalRuntime(RuntimeConfig(model=MODEL))
        found = measure(
            runtime.transport, lambda: attack(runtime.transport(), count, seed), options
        )
        runtime.shutdown()
    else:
        with serving("1GiB") as server:
            found = measure(
                lambda: ZmqTransport(server.endpoint, timeout_s=60.0),
                lambda: attack_in_a_process(server.endpoint, count, seed),
                options,
            )
    print(json.dumps(found, indent=1))
    ends = found["ends"]
    is_right = found["constraints"] == count and not found["failures_of_good_streams"]
    raise SystemExit(
        not is_right or any(key.startswith("un") for key in ends if key != "unsupported")
    )


if __name__ == "__main__":
    main()
