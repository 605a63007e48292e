"""``radixrt cachesim``, ``cachetrace`` and ``explain``."""

from __future__ import annotations

from pathlib import Path

import pytest

import radixrt as rt
from radixrt import cli
from radixrt.cli.cache import parse_tokens
from radixrt.errors import InvalidArgument


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_a_made_up_trace_is_simulated_and_drawn(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace, plot = tmp_path / "agents.jsonl", tmp_path / "plot.svg"
    code, out, _ = run(capsys, "cachetrace", "agents", str(trace), "--num-requests", "150")
    assert code == 0
    assert "fork_chance" in out, "its parameters are not stated"
    options = ("--capacity", "100k", "--capacity", "1M", "--plot", str(plot))
    code, out, _ = run(capsys, "cachesim", str(trace), *options)
    assert code == 0
    head, *rows = out.splitlines()[1:4]
    assert head.split()[0] == "capacity"
    assert {"lru", "lfu", "gdsf", "learned", "signals", "optimum"} <= set(head.split())
    assert [row.split()[0] for row in rows] == ["100k", "1M"]
    for row in rows:
        rates = dict(zip(head.split()[1:], map(float, row.split()[1:]), strict=True))
        assert all(0 < rate <= rates["optimum"] + 1 for rate in rates.values())
    assert plot.read_text().startswith("<svg")


def test_a_trace_without_programs_has_no_signals(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "plain.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 600, "hash_ids": [1, 2]}\n' * 3)
    _, out, _ = run(capsys, "cachesim", str(trace), "--capacity", "4k")
    assert "signals" not in out
    assert "66.67" in out, "two of three requests are hits"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("cachesim", "no such file"), "no such file"),
        (("cachetrace", "robots", "x"), "conversations, agents"),
        (("explain", "--endpoint", "nowhere"), "endpoint"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert told in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "tokens"), [("512", 512), ("500k", 500_000), ("1.5M", 1_500_000), ("2g", 2 * 10**9)]
)
def test_tokens_are_read_as_people_write_them(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "-1", "0", "many", "nan", "1e999"])
def test_what_is_no_number_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="500k"):
        parse_tokens(text)


def test_explain_tells_what_a_runtime_did(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with rt.Runtime(memory="128MiB") as runtime:
        # The command connects to a runtime; this one is in the process already.
        monkeypatch.setattr("radixrt.lang.backend.connect", lambda endpoint, **keys: runtime)

        @rt.function
        def program(s: rt.ProgramState) -> None:
            s += "Tell me about the sea." + rt.gen("x", max_tokens=2)

        program.run(backend=runtime)
        code, out, _ = run(capsys, "explain", "ipc:///nowhere", "--last", "1")
    assert code == 0
    assert "generate (call" in out
    assert "never seen" in out
