"""sglang-router: two servers behind its cache-aware policy."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from checks import FACTS, MODEL, Checks
from servers import serving

checks = Checks()
NUM_PREFIXES, NUM_EACH = 6, 6


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def counter(url: str, name: str, **labels: str) -> float:
    """The sum of a counter's samples that have these labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith(name) and all(label in line for label in wanted)
    )


@contextmanager
def router(urls: list[str]) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        metrics = free.getsockname()[1]
    command = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--prometheus-port", str(metrics), "--worker-urls", *urls]
    command += ["--policy", "cache_aware", "--cache-threshold", "0.3"]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, "the router ended"
            assert time.monotonic() < deadline, "the router does not answer"
            try:
                with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
                    if answer.status == 200:
                        break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def prompt(number: int, question: int) -> list[dict[str, str]]:
    facts = " ".join(f"{FACTS} Rule {number}.{line}: nothing." for line in range(20))
    return [
        {"role": "system", "content": f"Programme {number}. {facts}"},
        {"role": "user", "content": f"Question {question}: where does Maria live?"},
    ]


def asked(url: str, number: int, question: int, max_tokens: int) -> dict[str, Any]:
    body = {"model": MODEL, "messages": prompt(number, question), "temperature": 0}
    return post(url, "/v1/chat/completions", {**body, "max_tokens": max_tokens, "ignore_eos": True})


with ExitStack() as stack:
    urls: list[str] = []
    front = ""
    with checks.that("the router takes two radixrt servers as its workers"):
        urls = [stack.enter_context(serving()).url for _ in range(2)]
        front = stack.enter_context(router(urls))
        with urllib.request.urlopen(f"{front}/v1/models", timeout=10) as told:
            assert json.load(told)["data"][0]["id"] == MODEL
        answer = asked(front, 99, 0, 4)
        assert answer["choices"][0]["message"]["content"]

    with checks.that("requests that share a prefix go to one worker, prefixes to both"):
        # New prefixes go where there is less to do, so they come at the same time.
        with ThreadPoolExecutor(NUM_PREFIXES) as pool:
            list(pool.map(lambda number: asked(front, number, 0, 200), range(NUM_PREFIXES)))
        used: list[set[int]] = [set() for _ in range(NUM_PREFIXES)]
        cached: list[int] = []
        for question in range(1, NUM_EACH):
            for number in range(NUM_PREFIXES):
                before = [counter(url, "radixrt_requests_total") for url in urls]
                answer = asked(front, number, question, 4)
                after = [counter(url, "radixrt_requests_total") for url in urls]
                used[number].update(i for i in range(2) if after[i] > before[i])
                cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        print("prefix → workers:", used, "cached:", cached)
        assert all(len(workers) == 1 for workers in used), used
        assert set().union(*used) == {0, 1}, used
        assert min(cached) > 200, cached
        checks.note(
            f"{NUM_PREFIXES} prefixes of {answer['usage']['prompt_tokens']} tokens, "
            f"{NUM_EACH} requests each: every later one found at least {min(cached)} cached"
        )

    with checks.that("streams and completions pass through"):
        body = {"model": MODEL, "messages": prompt(1, 1), "max_tokens": 4, "stream": True}
        request = urllib.request.Request(
            f"{front}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert b"data: [DONE]" in answer.read()
        completed = post(
            front, "/v1/completions", {"model": MODEL, "prompt": "Hi", "max_tokens": 2}
        )
        assert completed["choices"][0]["text"]

checks.end()
