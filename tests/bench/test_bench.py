"""``radixrt bench``: the same work on both ways to the engine, and what is written about it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest

from radixrt.bench.command import run_bench
from radixrt.bench.engine import EngineDriver
from radixrt.bench.html import as_html
from radixrt.bench.measure import Measurement
from radixrt.bench.models import SHAPES, model_config, parse_settings, write_shape
from radixrt.bench.report import HEADER, Report, Side, show
from radixrt.bench.server import ServerDriver, serve_arguments, serving
from radixrt.bench.workloads import WORKLOADS, Prompts
from radixrt.config import RuntimeConfig
from radixrt.errors import EngineFault, PromptTooLong
from radixrt.runtime.tokenizer import Tokenizer

FLOAT32 = ["dtype=float32", "max_running=32", "max_step_tokens=256", "memory=300MiB"]
"""In float32 no two logits of the shipped model tie, so batches of any form agree."""


def small_tree(generate: Any, vocab_size: int) -> Prompts:
    """Two levels of a tree whose nodes go on with what was generated."""
    outputs: Prompts = []

    def noting(prompts: Prompts, max_new: list[int]) -> Prompts:
        outputs.extend(generate(prompts, max_new))
        return outputs[-len(prompts) :]

    WORKLOADS["tree"](noting, 0, vocab_size, 0.05, problems=2, width=2, depth=2)  # type: ignore[call-arg]
    WORKLOADS["multi_turn"](noting, 0, vocab_size, 0.05, sessions=3, turns=2)  # type: ignore[call-arg]
    return outputs


def test_both_ways_to_the_engine_give_the_same_tokens() -> None:
    with model_config("", FLOAT32) as config:
        engine = EngineDriver(config)
        expected = small_tree(engine.generate, engine.vocab_size)
        assert any(len(set(output)) > 1 for output in expected)
        with serving(config) as endpoint:
            server = ServerDriver.connect(endpoint)
            assert server.vocab_size == engine.vocab_size
            assert small_tree(server.generate, server.vocab_size) == expected
            assert server.stats()["cached_tokens"] > 0
            server.flush()
            assert server.stats()["kv_pages_cached"] == 0
            with pytest.raises(PromptTooLong):
                server.generate([[1] * 3000], [1])
            server.close()
    engine.flush()
    assert engine.stats()["kv_pages_cached"] == 0
    assert engine.stats()["parked_branches"] == 0


def test_the_command_measures_both_and_writes_what_one_needs_to_run_it_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "radixrt", "bench", "--only", "single", "--scale", "0.03"]
    for setting in FLOAT32:
        command += ["--set", setting]
    done = subprocess.run(
        [*command, "--seeds", "1,2", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[-1][0] == "single"
    assert lines[-1][-1].endswith("%")
    found = json.loads(file.read_text())
    assert found["config"]["dtype"] == "float32"
    assert found["config"].keys() == {field.name for field in fields(RuntimeConfig)}
    assert {"python", "torch", "triton", "flashinfer"} <= found["versions"].keys()
    assert found["date"]
    assert "CPU" in found["device"]
    assert "commit" in found
    assert found["seeds"] == [1, 2]
    for side in ("engine", "server"):
        assert found[side]["start_s"] > 0
        assert [run["seed"] for run in found[side]["runs"]] == [1, 2]
        assert found[side]["best"]["single"]["seconds"] == min(
            run["seconds"] for run in found[side]["runs"]
        )
        assert {run["output_tokens"] for run in found[side]["runs"]} == {8}
    assert found["workloads"]["single"]["same_outputs"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "singel"], "known: single, batch, few_shot, multi_turn, tree"),
        (["--set", "memroy=1GiB"], "known: attention"),
        (["--set", "cache=maybe"], "use true or false"),
        (["--set", "page_size=big"], "use a whole number"),
        (["--set", "drain_s=long"], "use a number"),
        (["--set", "dtype=int8"], "use auto, float32, bfloat16, float16"),
        (["--set", "memory"], "OPTION=VALUE"),
        (["--set", "memory=lots"], "use 'auto'"),
        (["--set", "model=x"], "give the model as the argument"),
        (["--seeds", "1,b"], "whole numbers"),
        (["--seeds", ""], "at least one"),
        (["--scale", "0"], "(0, 1]"),
        (["--no-engine", "--no-server"], "drop one of them"),
        (["--json", "no/such/folder/x.json"], "make it first"),
        (["llama-4"], "llama-3.1-8b, qwen2.5-0.5b"),
    ],
)
def test_an_option_that_cannot_work_is_refused_before_anything_starts(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from radixrt.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code == 1
    assert said in capsys.readouterr().err


def test_a_run_that_fails_says_why_and_names_the_way_out() -> None:
    with pytest.raises(EngineFault, match="lower --scale"):
        run_bench("", only=["multi_turn"], settings=["context_length=64"], has_server=False)
    broken = RuntimeConfig(attention="none such")
    with pytest.raises(EngineFault, match="none such"), serving(broken):
        raise AssertionError("it serves")


# ---------------------------------------------------------------- parts


def test_settings_have_the_types_of_the_config() -> None:
    options = parse_settings(
        ["page-size=32", "cache=off", "graphs=TRUE", "drain_s=1.5", "memory=80%", "dtype=bfloat16"]
    )
    assert options == {
        "page_size": 32,
        "cache": False,
        "graphs": True,
        "drain_s": 1.5,
        "memory": "80%",
        "dtype": "bfloat16",
    }


def test_a_server_gets_every_option_that_differs_from_its_default(tmp_path: Path) -> None:
    assert serve_arguments(RuntimeConfig()) == ["serve"]
    config = RuntimeConfig(model=tmp_path, cache=False, overlap=0, memory="1GiB")
    assert serve_arguments(config) == [
        "serve",
        str(tmp_path),
        "--memory=1GiB",
        "--no-cache",
        "--overlap=0",
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_a_tokenizer_of_the_models_size(shape: str, tmp_path: Path) -> None:
    config = SHAPES[shape]
    write_shape(tmp_path / shape, config)
    tokenizer = Tokenizer(tmp_path / shape)
    assert tokenizer.vocab_size == config["vocab_size"]
    assert tokenizer.end_ids == {config["eos_token_id"]}
    text = "Grüße, 漢字 🎉\n"
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
    assert tokenizer.token_text(1000) != tokenizer.token_text(1001)


def test_a_shape_is_served_with_random_weights_unless_told_otherwise() -> None:
    with model_config("qwen2.5-0.5b", ["memory=2GiB"]) as config:
        assert config.load_format == "dummy"
        assert config.memory == "2GiB"
        folder = config.model_path
        assert (folder / "config.json").exists()
    assert not folder.exists()


def measurement(workload: str, seed: int, seconds: float) -> Measurement:
    return Measurement(workload, seed, seconds, 2, 100, 50, f"{workload}{seed}", {})


def test_the_better_run_counts_and_the_ratio_is_that_of_the_rates() -> None:
    engine = Side(3.0, {}, (measurement("tree", 0, 2.0), measurement("tree", 100, 1.9)))
    server = Side(4.0, {}, (measurement("tree", 0, 2.0), measurement("tree", 100, 2.5)))
    report = Report("m", RuntimeConfig(), 1.0, (0, 100), engine, server)
    assert report.rows() == [
        ("first token", "3.00", "", "4.00", "", "75.0%"),
        ("tree", "1.90", "26", "2.00", "25", "95.0%"),
    ]
    assert report.as_json()["workloads"]["tree"] == {"ratio": 0.95, "same_outputs": True}
    plain = io.StringIO()
    show(report, plain)
    assert plain.getvalue().splitlines()[1].split()[0] == HEADER[0]
    assert "95.0%" in plain.getvalue()


def test_the_page_of_a_benchmark_has_the_tables_cells_and_the_tokens_by_source() -> None:
    engine = Side(3.0, {"device": "a CPU"}, (measurement("tree", 0, 2.0),))
    run = measurement("tree", 0, 2.5)
    counted = msgspec.structs.replace(run, counters={"cached_tokens": 75, "computed_tokens": 25})
    report = Report("m & n", RuntimeConfig(), 1.0, (0,), engine, Side(4.0, {}, (counted,)))
    page = as_html(report)
    assert "<h1>m &amp; n: benchmark</h1>" in page
    assert "75.0% of prompts cached" in page
    assert "a CPU" in page
    for cell in ("2.00", "2.50", "80.0%", "tree, through the server"):
        assert cell in page


def test_a_terminal_gets_a_drawn_table_with_the_same_cells() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    side = Side(3.0, {}, (measurement("tree", 0, 2.0),))
    show(Report("m", RuntimeConfig(), 0.5, (0,), side, None), terminal)
    assert "tree" in terminal.getvalue()
    assert "25" in terminal.getvalue()
    assert "─" in terminal.getvalue()
