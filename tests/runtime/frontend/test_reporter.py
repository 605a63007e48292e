"""What a server says while it starts: to a terminal, to a file, to a program."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from typing import Any

import pytest

from radixrt.runtime.serving.gateway_process import HttpService
from radixrt.runtime.serving.reporter import Reporter, how_to_ask, summary
from radixrt.runtime.wire import Progress

INFO: dict[str, Any] = {
    "model": "nano",
    "device": "CPU",
    "dtype": "float32",
    "kv_tokens": 4096,
    "max_running": 256,
    "max_context": 2048,
    "tiers": {"device": 4096, "host": 8192, "disk": 100_000},
}
SERVICE = HttpService(lambda endpoint, port: b"{}")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def start(reporter: Reporter) -> None:
    with reporter:
        reporter.event("starting", "nano")
        reporter.progress(Progress("weights", "on CPU"))
        reporter.progress(Progress("memory", "[4 GiB]"))
        reporter.ready(INFO, "ipc:///x", "http://127.0.0.1:1", SERVICE)


def test_a_file_gets_a_line_a_phase_and_nothing_that_moves() -> None:
    stream = io.StringIO()
    start(Reporter("text", stream))
    lines = stream.getvalue().splitlines()
    assert [line.split(" s  ")[1] for line in lines[:3]] == [
        "starting: nano",
        "weights: on CPU",
        "memory: [4 GiB]",
    ]
    assert "\x1b" not in stream.getvalue()
    assert lines[-1].split()[0] == "try"


def test_a_terminal_shows_the_phase_that_goes_on_and_gets_its_cursor_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    start(Reporter("text", stream))
    text = stream.getvalue()
    assert "memory: [4 GiB]" in text, "taken for markup"
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 2, "the cursor stays hidden"
    assert text.index("\x1b[?25h") < text.index("ready: ")


def test_a_start_that_fails_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    reporter = Reporter("text", stream)
    with contextlib.suppress(OSError), reporter:
        reporter.progress(Progress("weights", ""))
        raise OSError
    assert stream.getvalue().count("\x1b[?25h") == 1


def test_a_program_gets_an_object_a_line() -> None:
    stream = Terminal()  # a terminal makes no difference
    start(Reporter("json", stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["starting", "weights", "memory", "ready"]
    assert events[-1]["tiers"] == INFO["tiers"]
    assert (events[-1]["endpoint"], events[-1]["url"]) == ("ipc:///x", "http://127.0.0.1:1")


def test_the_summary_has_tokens_by_tier_and_requests_by_what_binds_them() -> None:
    told = dict(summary(INFO, "ipc:///x"))
    assert told["KV"] == "tokens: 4,096 on the device, 8,192 in host memory, 100,000 on disk"
    assert told["requests"] == "256 at once; 2 of 2,048 tokens each"


@pytest.mark.parametrize(
    ("service", "model", "has_key"),
    [
        (SERVICE, "nano", False),
        (HttpService(SERVICE.settings, "it's mine", needs_key=True), "it's mine", True),
    ],
)
def test_the_curl_line_names_what_is_served_and_the_key(
    service: HttpService, model: str, has_key: bool
) -> None:
    curl = dict(how_to_ask(INFO, "http://127.0.0.1:1", service))["try"]
    words = shlex.split(curl)
    assert json.loads(words[words.index("-d") + 1])["model"] == model
    assert ("Authorization: Bearer $RADIXRT_API_KEY" in words) == has_key
