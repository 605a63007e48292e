"""What the page for operators says is accepted: commands, files, the unit, the image's command."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from radixrt import cli
from radixrt.cli.api_keys import read_file
from radixrt.cli.serve_options import ServeOptions
from radixrt.config import RuntimeConfig
from radixrt.settings import effective, settings_of

PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Return every ``radixrt`` command line of the page, its words after ``radixrt``."""
    lines = [line[2:] for block in blocks("console") for line in block.splitlines()]
    lines += re.findall(r"^ExecStart=\S*?(radixrt .*)$", PAGE, re.MULTILINE)
    lines += [" ".join(json.loads(found)) for found in re.findall(r"^CMD (\[.*\])$", PAGE, re.M)]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("radixrt ")]
    return [line[1 : line.index(">>")] if ">>" in line else line[1:] for line in words]


@pytest.fixture(autouse=True)
def _without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RADIXRT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def serve_file(tmp_path: Path) -> Path:
    file = tmp_path / "serve.toml"
    file.write_text(blocks("toml")[0])
    return file


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out + told.err


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_of_the_page_is_one(
    words: list[str], capsys: pytest.CaptureFixture[str], serve_file: Path, tmp_path: Path
) -> None:
    words = [word.replace("/etc/radixrt/serve.toml", str(serve_file)) for word in words]
    words = [word.replace("/etc/radixrt", str(tmp_path)) for word in words]
    if words[0] == "serve":  # what it is started with can be shown
        words = ["config", "show", *words[1:]]
    elif words[0] in ("doctor", "bench"):  # they have tests of their own
        words = [*words, "--help"]
    elif words[:2] == ["plan", "/models/llama-3.1-8b"]:
        words[1] = "llama-3.1-8b"
        words += ["--device-memory", "80GiB"]
    code, told = run(capsys, *words)
    assert code == 0, told


def test_the_configuration_file_of_the_page_can_serve(serve_file: Path) -> None:
    keys = serve_file.parent / "keys.toml"
    keys.write_text(blocks("toml")[1])
    settings = settings_of(RuntimeConfig, ServeOptions)
    given = effective(settings, flags={}, environment={}, file=serve_file)
    of = lambda config: {name: given[name].value for name in settings_of(config)}  # noqa: E731
    RuntimeConfig(**of(RuntimeConfig)).resolve()
    options = ServeOptions(**of(ServeOptions))
    options.check()
    assert options.api_key_file == keys
    options.gateway("ipc://x", tuple(read_file(keys)), drain_s=60, log_format="json")
    # The unit waits longer than the drain takes.
    assert int(re.findall(r"TimeoutStopSec=(\d+)", PAGE)[0]) > given["drain_s"].value


def test_every_option_of_the_page_exists() -> None:
    known = {setting.flag for setting in settings_of(RuntimeConfig, ServeOptions).values()}
    known |= {f"--no-{flag[2:]}" for flag in known}
    known |= {"--config", "--json", "--help", "--device-memory", "--context", "--endpoint", "--url"}
    known |= {
        "--set",
        "--only",
        "--scale",
        "--seeds",
        "--minutes",
        "--install",
        "--no-install-recommends",
    }
    known |= {"--no-cache-dir", "--create-home", "--local-dir"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert not named - known
