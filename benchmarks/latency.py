"""Time from a client's send to its first token over ipc, beyond the engine's own time.

    python benchmarks/latency.py [--calls 200] [--prompt-words 8 64 256]

A runtime process serves the model that ships (or MODEL). The engine process notes when it received
a run and when it sent its first token; the client notes when it sent and when it got the first
chunk. Both clocks are the machine's monotonic one, so the difference is what client, transport,
frontend and the two sockets cost. Calls run one at a time; every prompt is new.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from radixrt.config import RuntimeConfig  # noqa: E402
from radixrt.protocol import (  # noqa: E402
    Append,
    Chunk,
    Close,
    Failed,
    Finished,
    Generate,
    Hello,
    Open,
    Part,
    Ping,
    Reply,
    Sampling,
    Stats,
    ToClient,
)
from radixrt.transport import ZmqTransport  # noqa: E402

TARGET_MS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--prompt-words", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--max-tokens", type=int, default=2)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        run_engine(options.engine)
    elif options.serve:
        serve(options.model, options.memory, Path(options.serve))
    else:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        ready = Path(directory) / "ready"
        command = [sys.executable, __file__, "--serve", str(ready), "--memory", options.memory]
        command += [] if options.model is None else ["--model", str(options.model)]
        process = subprocess.Popen(command)
        try:
            while not ready.exists():
                if process.poll() is not None:
                    sys.exit("the runtime did not start")
                time.sleep(0.05)
            transport = ZmqTransport(ready.read_text().strip())
            transport.send([Hello()])
            transport.receive(10.0)
            print(
                f"{'prompt':>8} {'calls':>6}   {'first token':>16} {'engine':>16} {'beyond it':>16}"
            )
            print(f"{'words':>8} {'':>6}   " + f"{'median p95 ms':>16} " * 3)
            measure_pings(transport, options.calls)
            overheads = []
            for words in options.prompt_words:
                overheads += measure_one(transport, words, options)
            median = 1000 * statistics.median(overheads)
            verdict = "ok" if median <= TARGET_MS else "MISSED"
            print(
                f"\nbeyond the engine, all calls: median {median:.3f} ms "
                f"(≤ {TARGET_MS} ms: {verdict})"
            )
            transport.close()
        finally:
            process.terminate()
            process.wait(20)


def measure_pings(transport: ZmqTransport, count: int) -> None:
    """Print the time of a ping: the same four hops, to an engine that has nothing to do."""
    took = []
    for seq in range(1, count + 1):
        began = time.monotonic()
        transport.send([Ping(seq)])
        transport.receive(10.0)
        took.append(time.monotonic() - began)
    print(f"    ping  {count:>5}  {_ms(took):>17}")


def measure_one(transport: ZmqTransport, words: int, options: argparse.Namespace) -> list[float]:
    """Print one row; return the seconds beyond the engine of each call."""
    calls = options.calls
    first_tokens = []
    for number in range(calls + 5):
        base = 10 * (words * 100_000 + number)
        text = " ".join(str((number * 7919 + i * 104_729) % 1000) for i in range(words))
        sampling = Sampling(max_tokens=options.max_tokens, temperature=0.0, ignore_eos=True)
        began = time.monotonic()
        transport.send(
            [
                Open(base),
                Append(base, (Part("text", text),)),
                Generate(base + 1, base, sampling, stream=True),
            ]
        )
        got = transport.receive(10.0)
        took = time.monotonic() - began
        assert got, "no answer"
        assert isinstance(got[0], Chunk), got
        while not any(isinstance(message, Finished | Failed) for message in got):
            got += transport.receive(10.0)
        transport.send([Close(base)])
        first_tokens.append(took)
    call = 10 * words + 3
    transport.send([Stats(call)])
    reply: list[ToClient] = []
    while not reply:
        reply = transport.receive(10.0)
    assert isinstance(reply[0], Reply)
    engine = reply[0].data["first_token_s"][-calls:]
    first_tokens = first_tokens[-calls:]
    beyond = [a - b for a, b in zip(first_tokens, engine, strict=True)]
    columns = "".join(f"{_ms(values):>17}" for values in (first_tokens, engine, beyond))
    print(f"{words:>8} {calls:>6}  {columns}")
    return beyond


def _ms(values: list[float]) -> str:
    ordered = sorted(values)
    p95 = ordered[int(0.95 * (len(ordered) - 1))]
    return f"{1000 * statistics.median(ordered):.3f} {1000 * p95:.3f}"


# ---------------------------------------------------------------- the processes measured


def serve(model: Path | None, memory: str, ready_file: Path) -> None:
    from radixrt.runtime.serving.server import Server

    config = RuntimeConfig(model=model, memory=memory)
    command = (sys.executable, __file__, "--engine")
    Server(config, ready_file=ready_file, engine_command=command).run()


def run_engine(endpoint: str) -> None:
    """The engine process with a channel that notes times."""
    from radixrt.runtime.channel import ZmqEngineChannel
    from radixrt.runtime.engine.assemble import build_loop
    from radixrt.runtime.serving.supervisor import load_config
    from radixrt.runtime.wire import EngineReply, FromEngine, Run, Step, ToEngine

    class TimingChannel(ZmqEngineChannel):
        def __init__(self) -> None:
            super().__init__(endpoint)
            self._began: dict[int, float] = {}
            self._first_tokens: list[float] = []

        def receive(self, timeout_s: float) -> list[ToEngine]:
            messages = super().receive(timeout_s)
            now = time.monotonic()
            self._began.update((m.id, now) for m in messages if isinstance(m, Run))
            return messages

        def send(self, messages: list[FromEngine]) -> None:
            now = time.monotonic()
            for index, message in enumerate(messages):
                if isinstance(message, Step):
                    for sampled in message.sampled:
                        if sampled.id in self._began:
                            self._first_tokens.append(now - self._began.pop(sampled.id))
                elif isinstance(message, EngineReply):
                    data = {**message.data, "first_token_s": self._first_tokens}
                    messages[index] = EngineReply(message.id, data)
            super().send(messages)

    config = load_config(sys.stdin.buffer.read())
    channel = TimingChannel()
    build_loop(config, channel).run()
    channel.close()


if __name__ == "__main__":
    main()
