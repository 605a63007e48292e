"""What people of other servers type first is answered with what to type here."""

from __future__ import annotations

from pathlib import Path

import pytest

import radixrt as rt
from radixrt import cli
from radixrt.cli.serve_options import ServeOptions
from radixrt.config import RuntimeConfig
from radixrt.elsewhere import NAMES, RENAMED, TURNED_OFF, WITHOUT, command_line_hint
from radixrt.errors import ConfigError, InvalidArgument
from radixrt.model_directory import check_model_directory
from radixrt.settings import settings_of

SETTINGS = settings_of(RuntimeConfig, ServeOptions)


def test_ours_are_named_as_they_are_and_never_taken_for_others() -> None:
    assert {*RENAMED.values(), *TURNED_OFF.values()} <= SETTINGS.keys()
    assert all(SETTINGS[name].type is bool for name in TURNED_OFF.values())
    others = {*RENAMED, *TURNED_OFF, *WITHOUT}
    assert others & SETTINGS.keys() == {"model"}  # an argument, no option
    assert not NAMES.keys() & set(rt.__all__)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--mem-fraction-static=0.8"], "use --memory"),
        (["serve", "x", "--disable-radix-cache"], "use --no-cache"),
        (["plan", "--tensor-parallel-size", "2"], "one device"),
        (["launch_server", "--model-path", "x"], "use radixrt serve"),
    ],
)
def test_a_command_line_of_another_server_is_one_line_to_mend(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_command_line_of_ours_is_left_alone() -> None:
    assert not command_line_hint(["serve", "x", "--memory", "80%", "--no-cache"])
    assert not command_line_hint(["run", "--model-path", "what is that?"])
    assert not command_line_hint([])


def test_an_option_of_another_servers_constructor_is_answered() -> None:
    with pytest.raises(ConfigError, match="unknown option mem_fraction_static; use memory"):
        rt.Runtime(mem_fraction_static=0.8)
    with pytest.raises(ConfigError, match="use cache=False"):
        rt.Runtime(disable_radix_cache=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_another_package_is_answered(name: str) -> None:
    with pytest.raises(AttributeError, match="; use "):
        getattr(rt, name)


def test_a_model_that_is_no_directory_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    name = Path("somebody/their-model")
    with pytest.raises(ConfigError, match="hf download somebody/their-model"):
        check_model_directory(name)
    snapshot = tmp_path / "hub" / "models--somebody--their-model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    with pytest.raises(ConfigError, match=f"it was downloaded to {snapshot}"):
        check_model_directory(name)
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(ConfigError, match="is a file; give a directory"):
        check_model_directory(file)
    with pytest.raises(ConfigError, match="no such directory"):
        rt.Runtime(tmp_path / "none")


def test_an_http_address_is_sent_to_its_backend() -> None:
    with pytest.raises(InvalidArgument, match="is for radixrt"):
        rt.RuntimeEndpoint("http://localhost:30000")
