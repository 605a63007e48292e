"""Mixed load on a server for a while, with everything that goes wrong in real life.

    python benchmarks/soak.py [--minutes 30] [--seed 0] [--json FILE]

A catalogue of greedy tasks (programs over ZeroMQ with forks, selections, streams and constraints;
chats, completions and streams over HTTP) is run once on a quiet server. Then workers repeat it at
random while engines and HTTP processes are killed, clients are killed in the middle of streams,
bodies and frames are malformed, and slow readers do not read. Exits with 1 unless

* every request had an outcome, an error only where something it needed was killed meanwhile;
* every output is that of the quiet run;
* no malformed request was answered as a fault of the server;
* in the end no page, branch, call or process is left that nobody owns;
* no process has grown beyond what it had after a fifth of the time.

The model runs in float32: in bfloat16 two tokens can be equally likely, and which one comes depends
on what else is in the batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import zmq

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import radixrt as rt  # noqa: E402
from radixrt.errors import CallFailed, ProgramError, RadixError, TransportError  # noqa: E402
from radixrt.protocol import TAGS, Append, Generate, Hello, Open, Part, Sampling, encode  # noqa: E402

NUM_WORKERS = 4
"""Workers of each kind, ZeroMQ and HTTP."""

MARK = "SOAK_OF"
"""Variable that all processes of the server inherit."""

REQUEST_LIMIT_S = 120.0
"""A request without an outcome by then has none."""

RECOVERY_S = 120.0
"""How long after a kill the server may take until it is ready again."""

GROWTH = 1.15
GROWTH_BYTES = 48 << 20
"""A process may end with so many times, and so much more than, what it had at a fifth."""

SUBJECTS = ("a dog", "the sea", "an old house", "two friends", "a red ball", "the moon", "a train")
PREFIX = "Once upon a time there was somebody who told stories to everyone who came by. " * 6
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
GREEDY = {"temperature": 0, "max_tokens": 24}


# ---------------------------------------------------------------- the catalogue


@rt.function
def story(s: rt.ProgramState, subject: str) -> None:
    s += PREFIX + f"This one is about {subject}:"
    s += rt.gen("text", **GREEDY)


@rt.function
def forked(s: rt.ProgramState, subject: str) -> None:
    s += rt.user(PREFIX + f"Two ways to begin about {subject}.")
    forks = s.fork(3)
    for number, fork in enumerate(forks):
        fork += rt.user(f"Way {number}")
        fork += rt.assistant(rt.gen("way", **GREEDY))
    s += rt.assistant(" / ".join(fork["way"] for fork in forks))
    s += rt.user("Which one?")
    s += rt.assistant(rt.select("choice", ["the first", "the second", "the third"]))


@rt.function
def constrained(s: rt.ProgramState, subject: str) -> None:
    s += rt.user(f"Who is in the story about {subject}?")
    s += rt.assistant(rt.gen("json", json_schema=SCHEMA, temperature=0, max_tokens=60))


def streamed(backend: rt.Backend, subject: str) -> str:
    state = story.run(subject, backend=backend, stream=True)
    pieces = "".join(state.text_iter("text"))
    assert pieces == state["text"], "the pieces are not the text"
    return pieces


ZMQ_TASKS: dict[str, Callable[[rt.Backend, str], str]] = {
    "program": lambda backend, subject: str(story.run(subject, backend=backend)["text"]),
    "forks": lambda backend, subject: forked.run(subject, backend=backend).text(),
    "constrained": lambda backend, subject: str(constrained.run(subject, backend=backend)["json"]),
    "stream": streamed,
}


def chat(client: httpx.Client, subject: str, **more: Any) -> str:
    messages = [{"role": "user", "content": PREFIX + f"Tell me about {subject}."}]
    body = {"model": "nano", "messages": messages, **GREEDY, **more}
    answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    return " / ".join(choice["message"]["content"] for choice in answer.json()["choices"])


def chat_stream(client: httpx.Client, subject: str) -> str:
    messages = [{"role": "user", "content": PREFIX + f"Tell me about {subject}."}]
    body = {"model": "nano", "messages": messages, **GREEDY, "stream": True}
    text, is_done = "", False
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            answer.read()
            answer.raise_for_status()
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                is_done = True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise Interrupted(str(event["error"].get("code")))
                text += event["choices"][0]["delta"].get("content") or ""
    if not is_done:
        raise Interrupted("the stream ended early")
    return text


def completion(client: httpx.Client, subject: str) -> str:
    prompt = PREFIX + f"This one is about {subject}:"
    answer = client.post("/v1/completions", json={"model": "nano", "prompt": prompt, **GREEDY})
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["text"])


def chat_json(client: httpx.Client, subject: str) -> str:
    shape = {"type": "json_schema", "json_schema": {"name": "who", "schema": SCHEMA}}
    return chat(client, subject, response_format=shape, max_tokens=60)


HTTP_TASKS: dict[str, Callable[[httpx.Client, str], str]] = {
    "http chat": chat,
    "http two": lambda client, subject: chat(client, subject, n=2),
    "http stream": chat_stream,
    "http completion": completion,
    "http json": chat_json,
}

Task = tuple[str, str]
"""Its kind and its subject."""


class Interrupted(Exception):
    """A stream that ended in an error."""


# ---------------------------------------------------------------- what is watched


@dataclass
class Soak:
    """Everything that threads share; ``lock`` guards it."""

    process: subprocess.Popen[bytes]
    endpoint: str
    url: str
    expected: dict[Task, str] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    chaos: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    kills: list[list[float]] = field(default_factory=list)
    """When something was killed, and when the server was ready again."""
    memory: dict[str, list[int]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def problem(self, text: str) -> None:
        with self.lock:
            self.problems.append(text)
        print(f"PROBLEM: {text}", flush=True)

    def child(self, mark: bytes) -> int | None:
        """Return the process id of the server's child with ``mark`` in its command."""
        pid = self.process.pid
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                if mark in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        return None

    def is_excused(self, began: float) -> bool:
        """Whether a request may fail: something was killed after it began, or was killed before
        and not back yet."""
        with self.lock:
            return any(back > began for _, back in self.kills)

    def kill(self, what: str, mark: bytes) -> None:
        pid = self.child(mark)
        if pid is not None:
            with self.lock:
                self.kills.append([time.monotonic(), float("inf")])
            os.kill(pid, signal.SIGKILL)
            self.chaos[what] += 1
            time.sleep(0.5)  # until it has noticed
            wait_until_ready(self)
            with self.lock:
                self.kills[-1][1] = time.monotonic() + 0.5


def http_client(soak: Soak) -> httpx.Client:
    return httpx.Client(base_url=soak.url, timeout=REQUEST_LIMIT_S)


def run_task(soak: Soak, task: Task, backend: Any, client: httpx.Client) -> str:
    kind, subject = task
    if kind in ZMQ_TASKS:
        return ZMQ_TASKS[kind](backend, subject)
    return HTTP_TASKS[kind](client, subject)


def quiet(soak: Soak) -> dict[Task, str]:
    """Run every task once, one after the other."""
    tasks = [(kind, subject) for kind in (*ZMQ_TASKS, *HTTP_TASKS) for subject in SUBJECTS]
    with rt.connect(soak.endpoint) as backend, http_client(soak) as client:
        return {task: run_task(soak, task, backend, client) for task in tasks}


def worker(soak: Soak, kinds: list[str], rng: random.Random) -> None:
    """Run tasks at random and judge what comes of them."""
    backend: Any = None
    client = http_client(soak)
    while not soak.over.is_set():
        task = rng.choice(kinds), rng.choice(SUBJECTS)
        began = time.monotonic()
        try:
            if task[0] in ZMQ_TASKS and (backend is None or not backend.is_open):
                backend = rt.connect(soak.endpoint, timeout_s=REQUEST_LIMIT_S)
            output = run_task(soak, task, backend, client)
        except (ProgramError, CallFailed, TransportError, httpx.HTTPError, Interrupted) as error:
            what = getattr(error, "cause", error)
            name = f"{task[0]}: {type(what).__name__}"
            with soak.lock:
                soak.outcomes[name] += 1
            if time.monotonic() - began > REQUEST_LIMIT_S:
                soak.problem(f"{task} had no outcome within {REQUEST_LIMIT_S:g} s: {what}")
            elif not soak.is_excused(began):
                soak.problem(f"{task} failed for no reason: {what}")
            soak.over.wait(1.0)
        else:
            with soak.lock:
                soak.outcomes[f"{task[0]}: answered"] += 1
            if output != soak.expected[task]:
                soak.problem(f"{task} gave {output!r}, alone it was {soak.expected[task]!r}")
    client.close()
    if backend is not None:
        backend.shutdown()


# ---------------------------------------------------------------- what goes wrong


def malformed_bodies(soak: Soak, rng: random.Random) -> None:
    """Bodies that no client should send; every one is the client's own fault."""
    values: list[Any] = [None, -1, 1e9, "x", [], {}, True, [{}], "\u0000", {"a": {"b": []}}]
    fields = ("messages", "max_tokens", "n", "temperature", "stop", "seed", "tools", "stream",
              "response_format", "logit_bias", "prompt", "echo", "logprobs", "regex")  # fmt: skip
    client = http_client(soak)
    while not soak.over.wait(0.3):
        path = rng.choice(["/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/responses"])
        body: dict[str, Any] = {"model": "nano", "messages": [{"role": "user", "content": "x"}]}
        body["max_tokens"] = 1
        for name in rng.sample(fields, rng.randrange(1, 4)):
            body[name] = rng.choice(values)
        content = json.dumps(body).encode()
        if rng.random() < 0.3:
            content = content[: rng.randrange(len(content))]
        began = time.monotonic()
        with contextlib.suppress(httpx.HTTPError):
            headers = {"Content-Type": "application/json"}
            answer = client.post(path, content=content, headers=headers)
            soak.chaos[f"malformed body answered {answer.status_code}"] += 1
            if answer.status_code >= 500 and not soak.is_excused(began):
                soak.problem(f"{path} answered {answer.status_code} to {content[:300]!r}")
    client.close()


def malformed_frames(soak: Soak, rng: random.Random) -> None:
    context = zmq.Context()
    while not soak.over.wait(0.5):
        with context.socket(zmq.DEALER) as raw:
            raw.linger = 0
            raw.connect(soak.endpoint)
            frames = [encode(Hello())] if rng.random() < 0.5 else []
            for _ in range(20):
                junk = rng.randbytes(rng.randrange(200))
                made = json.dumps([rng.choice([*TAGS]), {"call": rng.choice([1, -1, "x", None])}])
                frames.append(rng.choice([junk, made.encode()]))
            raw.send_multipart(frames)
            raw.poll(500)
            soak.chaos["malformed frames"] += len(frames)
    context.destroy(linger=0)


def slow_readers(soak: Soak, rng: random.Random) -> None:
    """Streams of which a little is read, over both ways, and then nothing more."""
    host, port = soak.url.removeprefix("http://").split(":")
    context = zmq.Context()
    while not soak.over.is_set():
        body = json.dumps(
            {"model": "nano", "prompt": "Count: ", "max_tokens": 400, "stream": True,
             "ignore_eos": True}
        )  # fmt: skip
        request = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        )
        with contextlib.suppress(OSError), socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            slow.settimeout(5)
            slow.connect((host, int(port)))
            slow.sendall(request.encode())
            slow.recv(64)
            soak.over.wait(rng.uniform(0.5, 4.0))
            soak.chaos["slow HTTP readers"] += 1
        with context.socket(zmq.DEALER) as raw:
            raw.linger = 0
            raw.rcvhwm = 1
            raw.connect(soak.endpoint)
            part = Part("text", "Count: ")
            call = Generate(1, 1, Sampling(max_tokens=400, ignore_eos=True), stream=True, credit=1)
            raw.send_multipart([encode(m) for m in (Hello(), Open(1), Append(1, (part,)), call)])
            raw.poll(1000)
            soak.over.wait(rng.uniform(0.2, 2.0))
            soak.chaos["slow ZeroMQ readers"] += 1
    context.destroy(linger=0)


def killed_clients(soak: Soak, rng: random.Random) -> None:
    """Processes that are killed in the middle of their streams."""
    command = [sys.executable, __file__, "--victim", soak.endpoint, soak.url]
    while not soak.over.wait(rng.uniform(1.0, 4.0)):
        victim = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert victim.stdout is not None
        with victim, victim.stdout as stdout:
            stdout.readline()  # both of its streams have begun, or it has failed
            victim.kill()
        soak.chaos["killed clients"] += 1


def be_killed(endpoint: str, url: str) -> None:
    """Stream over both ways until somebody kills us."""
    with rt.connect(endpoint) as backend, httpx.Client(base_url=url, timeout=60) as client:
        state = story.run("nobody", backend=backend, stream=True, max_tokens=400)
        next(state.text_iter("text"))
        body = {"model": "nano", "prompt": "x", "max_tokens": 400, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
            print("streaming", flush=True)
            time.sleep(60)


def killed_processes(soak: Soak, rng: random.Random, between_s: float) -> None:
    while not soak.over.wait(between_s * rng.uniform(0.7, 1.3)):
        if rng.random() < 0.7:
            soak.kill("killed engines", b"--engine")
        else:
            soak.kill("killed HTTP processes", b"radixrt.gateway")


# ---------------------------------------------------------------- the checks


def watch_memory(soak: Soak) -> None:
    """Note what each process has resident; those that were killed begin anew."""
    marks = {"engine": b"--engine", "http": b"radixrt.gateway"}
    while not soak.over.wait(2.0):
        pids = {name: soak.child(mark) for name, mark in marks.items()}
        for name, pid in {"server": soak.process.pid, **pids}.items():
            with contextlib.suppress(OSError, TypeError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                soak.memory.setdefault(name, []).append(pages * os.sysconf("SC_PAGE_SIZE"))


def check_memory(soak: Soak) -> dict[str, dict[str, float]]:
    report = {}
    for name, sizes in soak.memory.items():
        early = max(sizes[: max(1, len(sizes) // 5)])
        late = max(sizes[-max(1, len(sizes) // 5) :])
        report[name] = {"MiB at a fifth": early >> 20, "MiB in the end": late >> 20}
        if late > GROWTH * early + GROWTH_BYTES:
            soak.problem(f"the {name} grew from {early >> 20} to {late >> 20} MiB")
    return report


def processes() -> list[str]:
    """Return the command lines of all processes that the server has, or has left behind."""
    mark = f"{MARK}={os.getpid()}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in folder.joinpath("environ").read_bytes().split(b"\0"):
                found.append(folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def check_pages(soak: Soak) -> dict[str, int]:
    """Wait until all is quiet, then count what is left."""
    names = ("client_calls", "branches", "clients", "running", "waiting", "kv_pages",
             "kv_pages_free", "kv_pages_cached", "kv_pages_evictable")  # fmt: skip
    deadline = time.monotonic() + 60
    with rt.connect(soak.endpoint, timeout_s=60) as backend:
        while True:
            stats = backend.get_server_info()
            # This session and that of HTTP stay; the question itself is a call.
            left = {name: int(stats[name]) for name in names}
            is_quiet = left["client_calls"] == 1 and not left["branches"]
            leaked = left["kv_pages"] - left["kv_pages_free"] - left["kv_pages_cached"]
            locked = left["kv_pages_cached"] - left["kv_pages_evictable"]
            if is_quiet and not leaked and not locked and left["clients"] == 2:
                return left
            if time.monotonic() > deadline:
                soak.problem(
                    f"something is left: {left}, {leaked} pages of nobody, {locked} locked"
                )
                return left
            time.sleep(0.5)


# ---------------------------------------------------------------- the whole


@contextlib.contextmanager
def serving(log: Path) -> Iterator[Soak]:
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder, "ready")
        command = [sys.executable, "-m", "radixrt", "serve", "--port", "0", "--dtype", "float32"]
        command += ["--memory", "128MiB", "--host-memory", "64MiB", "--max-running", "32"]
        command += ["--ready-file", str(ready), "--drain-s", "10"]
        mark = {MARK: str(os.getpid())}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **mark}, stdout=stream, stderr=stream
            )
        try:
            while not ready.exists():
                if process.poll() is not None:
                    sys.exit(f"the server did not start: {log.read_text()}")
                time.sleep(0.05)
            endpoint, url = ready.read_text().split()
            yield Soak(process, endpoint, url)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run(minutes: float, seed: int, kill_every_s: float, log: Path) -> dict[str, Any]:
    found = soak_it(minutes, seed, kill_every_s, log)
    left = processes()
    if left:
        found["problems"].append(f"processes outlived the server: {left}")
    return found


def soak_it(minutes: float, seed: int, kill_every_s: float, log: Path) -> dict[str, Any]:
    with serving(log) as soak:
        soak.expected = quiet(soak)
        print(f"{len(soak.expected)} tasks, {minutes:g} minutes", flush=True)
        numbers = iter(range(1000))
        random_of = lambda: random.Random(1000 * seed + next(numbers))  # noqa: E731
        jobs: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(watch_memory, ())]
        for kinds in (list(ZMQ_TASKS), list(HTTP_TASKS)):
            jobs += [(worker, (kinds, random_of())) for _ in range(NUM_WORKERS)]
        for chaos in (malformed_bodies, malformed_frames, slow_readers, killed_clients):
            jobs.append((chaos, (random_of(),)))
        jobs.append((killed_processes, (random_of(), kill_every_s)))
        threads = [threading.Thread(target=guarded, args=(soak, *job)) for job in jobs]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end and soak.process.poll() is None:
            time.sleep(min(30.0, max(0.0, end - time.monotonic())))
            print(f"{max(0.0, end - time.monotonic()):5.0f} s left: {sum(soak.outcomes.values())} "
                  f"requests, {dict(soak.chaos)}", flush=True)  # fmt: skip
        soak.over.set()
        for thread in threads:
            thread.join(REQUEST_LIMIT_S + RECOVERY_S)
            if thread.is_alive():
                soak.problem("a worker still waits for an outcome")
        if soak.process.poll() is not None:
            soak.problem(f"the server ended (exit code {soak.process.returncode})")
            return report(soak, minutes, seed, {}, {})
        wait_until_ready(soak)
        if quiet(soak) != soak.expected:
            soak.problem("the outputs are not those of the quiet run before")
        pages = check_pages(soak)
        if "Traceback" in log.read_text(errors="replace"):
            soak.problem(f"something raised: see {log}")
        return report(soak, minutes, seed, check_memory(soak), pages)


def guarded(soak: Soak, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    try:
        job(soak, *arguments)
    except Exception as error:
        soak.problem(f"{job.__name__} ended: {error!r}")


def wait_until_ready(soak: Soak) -> None:
    deadline = time.monotonic() + RECOVERY_S
    while time.monotonic() < deadline and soak.process.poll() is None:
        with contextlib.suppress(httpx.HTTPError), http_client(soak) as client:
            if client.get("/ready").status_code == 200:
                return
        time.sleep(0.2)
    soak.problem(f"the server was not ready again within {RECOVERY_S:g} s")


def report(
    soak: Soak, minutes: float, seed: int, memory: dict[str, Any], pages: dict[str, int]
) -> dict[str, Any]:
    return {
        "minutes": minutes,
        "seed": seed,
        "requests": sum(soak.outcomes.values()),
        "outcomes": dict(sorted(soak.outcomes.items())),
        "chaos": dict(sorted(soak.chaos.items())),
        "memory": memory,
        "left": pages,
        "processes": processes(),
        "seconds until ready again": [round(back - kill, 1) for kill, back in soak.kills],
        "problems": soak.problems,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill-every-s", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir(), "radixrt-soak.log"))
    parser.add_argument("--victim", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.victim:
        with contextlib.suppress(RadixError, httpx.HTTPError, StopIteration):
            be_killed(*options.victim)
        return
    found = run(options.minutes, options.seed, options.kill_every_s, options.log)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if found["problems"] else 0)


if __name__ == "__main__":
    main()
