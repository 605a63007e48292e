"""``radixrt serve`` as people run it: one command, ZeroMQ and HTTP, real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import radixrt as rt
from radixrt import cli

ROOT = Path(__file__).parents[2]
KEY, ADMIN_KEY = "k" * 32, "a" * 32
CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hello!"}],
    "temperature": 0,
    "max_tokens": 8,
}
LONG = {**CHAT, "max_tokens": 300, "stream": True, "ignore_eos": True}


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    endpoint: str
    url: str
    log: Path

    def http(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        )

    def stats(self) -> dict[str, Any]:
        with rt.connect(self.endpoint) as backend:
            return backend.get_server_info()

    def gateway_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for pid in children.split():
            if b"radixrt.gateway" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        raise AssertionError("there is no HTTP process")


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, **environment: str) -> Iterator[Served]:
    ready, log = folder / "ready", folder / "log"
    command = [sys.executable, "-m", "radixrt", "serve", "--port", "0", "--memory", "256MiB"]
    command += [
        "--dtype",
        "float32",
        "--model-name",
        "tiny",
        "--ready-file",
        str(ready),
        *arguments,
    ]
    keys = {"RADIXRT_API_KEY": KEY, "RADIXRT_ADMIN_KEY": ADMIN_KEY}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **keys, **environment}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=env, stdout=stream, stderr=stream)
    try:
        until(ready.exists, lambda: process.poll() is None, log)
        endpoint, url = ready.read_text().split()
        yield Served(process, endpoint, url, log)
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        process.kill()
        process.wait()


def until(
    condition: Callable[[], Any], alive: Callable[[], bool] = lambda: True, log: Path | None = None
) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        told = log.read_text() if log else ""
        assert alive(), told
        assert time.monotonic() < deadline, told
        time.sleep(0.02)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("serve")) as process:
        yield process


def readiness(client: httpx.Client) -> tuple[int, str]:
    answer = client.get("/ready")
    return answer.status_code, answer.json().get("status", "")


def test_what_is_printed_can_be_copied_and_works(served: Served) -> None:
    lines = [line.strip() for line in served.log.read_text().splitlines()]
    (curl,) = (line.removeprefix("try").strip() for line in lines if line.startswith("try "))
    assert f"{served.url}/v1/chat/completions" in curl
    said = subprocess.run(
        [*(word.replace("$RADIXRT_API_KEY", KEY) for word in _words(curl)), "-s"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert json.loads(said)["choices"][0]["message"]["content"]
    text = " ".join(lines)
    for what in ("model ", "KV ", "requests ", "ZeroMQ ", "HTTP "):
        assert what in text
    assert KEY not in text


def _words(command: str) -> list[str]:
    import shlex
    import shutil

    words = shlex.split(command)
    if shutil.which(words[0]) is None:
        pytest.skip("there is no curl")
    return words


def test_programs_and_http_clients_share_one_cache(served: Served) -> None:
    text = "A story that both of them read: " + "once upon a time " * 30

    @rt.function
    def tell(s: rt.ProgramState) -> None:
        s += rt.user(text)
        s += rt.assistant(rt.gen("answer", max_tokens=4, temperature=0))

    with served.http() as client:
        body = {**CHAT, "messages": [{"role": "user", "content": text}], "max_tokens": 4}
        first = client.post("/v1/chat/completions", json=body).json()
        again = client.post("/v1/chat/completions", json=body).json()
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] < 10
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 80
    # The key's cache is its own: a program of another tenant computes the text again.
    with rt.connect(served.endpoint) as backend:
        alone = tell.run(backend=backend).get_meta_info("answer")
        shared = tell.run(backend=backend, tenant="environment").get_meta_info("answer")
    assert alone["cached_tokens"] < 10
    assert shared["cached_tokens"] > 80


def test_run_answers_over_both_ways_alike(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    answers = []
    for where in (("--endpoint", served.endpoint), ("--url", f"{served.url}/v1")):
        with pytest.raises(SystemExit) as ended:
            cli.main(
                ["run", "Tell me a story.", *where, "--temperature", "0", "--max-tokens", "12"]
            )
        told = capsys.readouterr()
        assert not ended.value.code, told.err
        answers.append(told.out)
    assert answers[0] == answers[1]
    assert answers[0].strip()


def test_metrics_are_for_those_with_a_key(served: Served) -> None:
    with served.http() as client:
        client.post("/v1/chat/completions", json=CHAT)
        assert httpx.get(f"{served.url}/metrics").status_code == 401
        page = client.get("/metrics", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    assert page.status_code == 200
    assert 'radixrt_requests_total{kind="generate"' in page.text
    assert "radixrt_engine_up 1.0" in page.text


def test_a_killed_engine_fails_its_calls_and_readiness_says_so(served: Served) -> None:
    seen: list[tuple[int, str]] = []
    with served.http() as client, served.http() as other:
        with client.stream("POST", "/v1/chat/completions", json=LONG) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(_engine_pid(served), signal.SIGKILL)
            until(lambda: seen.append(readiness(other)) or seen[-1][0] == 503)  # type: ignore[func-returns-value]
            rest = "\n".join(lines)
        assert "error" in rest, "the stream ended as if it were complete"
        assert seen[-1] == (503, "restarting")
        assert other.get("/health").status_code == 200
        until(lambda: readiness(other) == (200, "ready"))
        assert other.post("/v1/chat/completions", json=CHAT).status_code == 200


def _engine_pid(served: Served) -> int:
    children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text()
    for pid in children.split():
        if b"--engine" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    raise AssertionError("there is no engine")


def test_a_killed_http_process_comes_back_and_programs_do_not_notice(served: Served) -> None:
    @rt.function
    def talk(s: rt.ProgramState) -> None:
        s += rt.user("Hello!")
        s += rt.assistant(rt.gen("answer", max_tokens=300, temperature=0, ignore_eos=True))

    with rt.connect(served.endpoint) as backend:
        state = talk.run(backend=backend, stream=True)
        next(state.text_iter("answer"))
        before = served.gateway_pid()
        os.kill(before, signal.SIGKILL)
        state = talk.run(backend=backend)
        assert state.get_meta_info("answer")["completion_tokens"] == 300

    def is_back() -> bool:
        with contextlib.suppress(httpx.TransportError), served.http() as client:
            return readiness(client) == (200, "ready")
        return False

    until(is_back)
    assert served.gateway_pid() != before


def test_a_drain_lets_streams_finish_and_sends_others_away(tmp_path: Path) -> None:
    with serving(tmp_path, "--drain-s", "60") as served:
        with served.http() as client, served.http() as other:
            with client.stream("POST", "/v1/chat/completions", json=LONG) as answer:
                lines = answer.iter_lines()
                next(lines)
                served.process.terminate()
                until(lambda: readiness(other) == (503, "draining"))
                refused = other.post("/v1/chat/completions", json=CHAT)
                rest = list(lines)
            assert refused.status_code == 503
            assert "Retry-After" in refused.headers
        assert any("[DONE]" in line for line in rest), "the stream was cut"
        assert '"finish_reason":"length"' in "".join(rest)
        assert served.process.wait(30) == 0


@pytest.mark.parametrize("signals", ["one", "two", "one to every process"])
def test_a_stream_that_outlasts_the_drain_ends_with_an_error(tmp_path: Path, signals: str) -> None:
    many = {"ignore_eos": True, "stream": True}
    bodies = {
        "/v1/chat/completions": {**LONG, "max_tokens": 1900},
        "/v1/completions": {"prompt": "Hello!", "max_tokens": 1900, **many},
        "/v1/responses": {"input": "Hello!", "max_output_tokens": 1900, **many},
    }
    drain_s = "0.1" if signals != "two" else "600"
    told: dict[str, str] = {}
    with serving(tmp_path, "--drain-s", drain_s) as served, contextlib.ExitStack() as stack:
        answers = {}
        for route, body in bodies.items():
            client = stack.enter_context(served.http())
            answer = stack.enter_context(client.stream("POST", route, json=body))
            answers[route] = answer.iter_lines()
            next(answers[route])  # it has begun
        if signals == "one to every process":  # as service managers do
            os.kill(served.gateway_pid(), signal.SIGTERM)
        served.process.terminate()
        if signals == "two":
            until(lambda: "draining" in served.log.read_text())
            served.process.terminate()
        for route, lines in answers.items():
            told[route] = "\n".join(lines)
        assert served.process.wait(30) == 0
    for route in ("/v1/chat/completions", "/v1/completions"):
        *_, error, done = filter(None, told[route].split("\n"))
        assert "shutting down" in json.loads(error.removeprefix("data: "))["error"]["message"]
        assert done == "data: [DONE]"
    *_, event, data = filter(None, told["/v1/responses"].split("\n"))
    assert event == "event: response.failed"
    assert (
        "shutting down" in json.loads(data.removeprefix("data: "))["response"]["error"]["message"]
    )


def test_two_servers_do_not_take_each_others_port(served: Served, tmp_path: Path) -> None:
    port = served.url.rpartition(":")[2]
    command = [sys.executable, "-m", "radixrt", "serve", "--port", port]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"port={port}" in done.stderr
    assert "--no-http" in done.stderr
    assert done.stderr.count("\n") == 1


def test_log_lines_are_json_when_they_are_to_be(tmp_path: Path) -> None:
    with serving(tmp_path, "--log-format", "json") as served:
        thread = threading.Thread(target=served.process.terminate)
        thread.start()
        thread.join()
        assert served.process.wait(30) == 0
        events = [json.loads(line) for line in served.log.read_text().splitlines() if line]
    ready = next(event for event in events if event.get("event") == "ready")
    assert ready["endpoint"] == served.endpoint
    assert ready["url"] == served.url
    assert ready["tiers"]["device"] == ready["kv_tokens"]
