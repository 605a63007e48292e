"""Hostile constraints while good streams run.

    python benchmarks/hostile_constraints.py [--constraints 2000] [--streams 8] [--schemas]
        [--in-process]

A server runs the shipped model. A client keeps eight greedy generations streaming: at first alone,
then while another client sends constraints made to hurt (deep nesting, huge repeats, catastrophic
patterns, bad references, exponential schemas, text that is no UTF-8), sixteen at a time. Reports
the times between two tokens of the streams in both phases, and what became of the constraints. Who
measures is a process that does nothing else, and so is who attacks. ``--schemas``: another one asks
for good schemas, twice a second, and the times until their first tokens are reported as well.
``--in-process``: all of it in one process, the clients as well. Prints one JSON object; exits with
1 when an answer is missing or has no type.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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


@dataclass
class Timed:
    """Times that a client has measured, as (when, seconds) on the clock of ``time.perf_counter``,
    which the processes of a machine share; and what failed."""

    times: list[tuple[float, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Return statistics, in ms, of a span without its first second; p100 is the longest."""
        found = [took * 1e3 for at, took in self.times if begin + 1 <= at <= end]
        if not found:
            return {"count": 0}
        ranks = (50, 99, 99.9, 100)
        told = {f"p{p:g}": round(float(np.percentile(found, p)), 2) for p in ranks}
        return {"count": len(found), **told}


Wait = Callable[[float], bool]
"""Waits for so many seconds; whether it is over before."""


def stream(transport: Transport, count: int, is_over: Wait) -> Timed:
    """Keep ``count`` generations streaming; the times are those between two tokens of one."""
    transport.send([Hello()])
    found, last, numbers = Timed(), dict[int, float](), itertools.count(1)
    while not (is_ending := is_over(0.0)) or last:
        while len(last) < count and not is_ending:
            call = next(numbers)
            text = f"Question {call % count}: what do people in Lisbon do on day {call // count}?"
            sampling = Sampling(max_tokens=64, temperature=0.0, ignore_eos=True)
            transport.send(
                [
                    Open(call),
                    Append(call, (Part("text", text),)),
                    Generate(call, call, sampling, stream=True),
                    Close(call),
                ]
            )
            last[call] = 0.0
        for message in transport.receive(5.0):
            now = time.perf_counter()
            if isinstance(message, Chunk):
                if last[message.call]:
                    found.times.append((now, now - last[message.call]))
                last[message.call] = now
            elif isinstance(message, Finished | Failed) and message.call is not None:
                del last[message.call]
                if isinstance(message, Failed):
                    found.failures.append(message.message)
    return found


def good_schema(number: int) -> Constraint:
    """Return a schema as programs have them; no two are the same."""
    text, count = {"type": "string", "maxLength": 40}, {"type": "integer", "minimum": 0}
    line = {
        "type": "object",
        "properties": {"name": text, "count": count, "unit": {"enum": ["kg", "l", "piece"]}},
        "required": ["name", "count", "unit"],
        "additionalProperties": False,
    }
    schema = {
        "type": "object",
        "properties": {
            f"order_{number}": text,
            "day": {"type": "string", "format": "date"},
            "lines": {"type": "array", "items": line, "maxItems": 3},
            "note": {"anyOf": [text, {"type": "null"}]},
        },
        "required": [f"order_{number}", "day", "lines"],
        "additionalProperties": False,
    }
    return Constraint("json_schema", json.dumps(schema))


def ask_for_schemas(transport: Transport, count: int, is_over: Wait) -> Timed:
    """Ask for good schemas; the times are those until the first token under each."""
    transport.send([Hello()])
    found = Timed()
    for call in itertools.count(1):
        if is_over(0.5):
            return found
        began, is_first, is_running = time.perf_counter(), True, True
        sampling = Sampling(max_tokens=200, temperature=0.0)
        transport.send(
            [
                Open(call),
                Append(call, (Part("text", "x"),)),
                Generate(call, call, sampling, constraint=good_schema(call), stream=True),
                Close(call),
            ]
        )
        while is_running:
            for message in transport.receive(5.0):
                now = time.perf_counter()
                if isinstance(message, Chunk) and is_first:
                    found.times.append((now, now - began))
                    is_first = False
                elif isinstance(message, Failed):
                    found.failures.append(message.message)
                is_running &= not isinstance(message, Finished | Failed)
    return found


MEASURES: dict[str, Callable[[Transport, int, Wait], Timed]] = {
    "streams": stream,
    "schemas": ask_for_schemas,
}


class Measuring:
    """A client that measures until it is told to stop: a thread, or with ``endpoint`` a process of
    its own."""

    def __init__(self, what: str, connect: Callable[[], Transport], options: Any) -> None:
        self._over = threading.Event()
        self._found = Timed()
        self._process: subprocess.Popen[bytes] | None = None
        if options.endpoint:
            self._process = start(options, "--measure", what)
            return

        def work() -> None:
            self._found = MEASURES[what](connect(), options.streams, self._over.wait)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def stop(self) -> Timed:
        """End it; return what it has measured."""
        if self._process is None:
            self._over.set()
            self._thread.join(timeout=60)
            return self._found
        said, _ = self._process.communicate(timeout=60)  # it ends with its standard input
        return Timed(**json.loads(said))


def start(options: Any, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a client."""
    command = [sys.executable, __file__, "--endpoint", options.endpoint, *arguments]
    command += ["--streams", str(options.streams), "--seed", str(options.seed)]
    command += ["--constraints", str(options.constraints)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def measure_here(options: Any) -> None:
    """Be the process of a ``Measuring``."""

    def is_over(wait_s: float) -> bool:
        return bool(select.select([sys.stdin], [], [], wait_s)[0])

    gc.disable()  # a collection would be measured as well
    transport = ZmqTransport(options.endpoint, timeout_s=60.0)
    print(json.dumps(asdict(MEASURES[options.measure](transport, options.streams, is_over))))
    transport.close()


def attack_in_a_process(options: Any) -> Counter[str]:
    """``attack`` by another process."""
    said, _ = start(options, "--attack").communicate()
    return Counter(json.loads(said))


def measure(
    connect: Callable[[], Transport], assault: Callable[[], Counter[str]], options: Any
) -> dict[str, Any]:
    """Return what became of the streams and of the constraints."""
    clients = {"streams": Measuring("streams", connect, options)}
    if options.schemas:
        clients["schemas"] = Measuring("schemas", connect, options)
    time.sleep(3.0)
    began = time.perf_counter()
    time.sleep(options.seconds)
    quiet = time.perf_counter()
    ends = assault()
    over = time.perf_counter()
    found = {name: client.stop() for name, client in clients.items()}
    return {
        "constraints": sum(ends.values()),
        "ends": dict(ends),
        "seconds": round(over - quiet, 1),
        "failures": [text for one in found.values() for text in one.failures],
        **{f"{name}_ms_alone": one.between(began, quiet) for name, one in found.items()},
        **{f"{name}_ms_attacked": one.between(quiet, over) for name, one in found.items()},
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraints", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schemas", action="store_true")
    parser.add_argument("--in-process", action="store_true")
    parser.add_argument("--endpoint", default="", help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=[*MEASURES], help=argparse.SUPPRESS)
    parser.add_argument("--attack", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    count, seed = options.constraints, options.seed
    if options.measure:
        measure_here(options)
        return
    if options.attack:
        transport = ZmqTransport(options.endpoint, timeout_s=60.0)
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
            options.endpoint = server.endpoint
            found = measure(
                lambda: ZmqTransport(server.endpoint, timeout_s=60.0),
                lambda: attack_in_a_process(options),
                options,
            )
    print(json.dumps(found, indent=1))
    ends = found["ends"]
    is_right = found["constraints"] == count and not found["failures"]
    raise SystemExit(
        not is_right or any(key.startswith("un") for key in ends if key != "unsupported")
    )


if __name__ == "__main__":
    main()
