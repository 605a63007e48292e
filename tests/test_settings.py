"""Options from flags, variables and files: what they mean, who wins, what is refused."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixrt import cli
from radixrt.cli.serve_options import ServeOptions
from radixrt.config import RuntimeConfig
from radixrt.errors import ConfigError
from radixrt.gateway.settings import ApiKey, GatewaySettings
from radixrt.settings import (
    DEFAULT,
    Given,
    effective,
    settings_of,
    unknown_variables,
)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A config with a field of every kind."""

    name: str = "x"
    """A ``text`` over
    two lines."""
    count: int = 3
    """A number."""
    seconds: float = 1.5
    """Seconds."""
    is_on: bool = True
    """A switch."""
    mode: Literal["slow", "fast"] = "slow"
    """A word."""
    folder: Path | None = None
    """A path."""
    names: tuple[str, ...] = ()
    """Several texts."""


SETTINGS = settings_of(Sample)


def values(**sources: Any) -> dict[str, Any]:
    found = effective(SETTINGS, **{"flags": {}, "environment": {}, **sources})
    return {name: given.value for name, given in found.items()}


def test_a_setting_has_the_fields_type_default_and_docstring() -> None:
    assert SETTINGS["name"].help == "A text over two lines."
    assert SETTINGS["is_on"].flag == "--is-on"
    assert SETTINGS["is_on"].variable == "RADIXRT_IS_ON"
    assert SETTINGS["mode"].choices == ("slow", "fast")
    assert SETTINGS["folder"].type is Path
    assert values() == dataclasses.asdict(Sample())


def test_the_command_line_comes_before_the_variable_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text('count = 5\nseconds = 2\nmode = "fast"\n')
    found = effective(
        SETTINGS,
        flags={"count": 7, "is_on": False, "name": None},
        environment={"RADIXRT_COUNT": "6", "RADIXRT_SECONDS": "4"},
        file=file,
    )
    assert found["count"] == Given(7, "--count")
    assert found["is_on"] == Given(False, "--no-is-on")
    assert found["seconds"] == Given(4.0, "RADIXRT_SECONDS")
    assert found["mode"] == Given("fast", str(file))
    assert found["name"] == Given("x", DEFAULT)


def test_values_of_a_file_have_the_types_of_the_fields(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text('is-on = false\nfolder = "sub/dir"\nnames = ["a", "b"]\nseconds = 3\n')
    found = values(file=file)
    assert found["is_on"] is False
    assert found["folder"] == tmp_path / "sub/dir", "a path is not that of the file's folder"
    assert found["names"] == ("a", "b")
    assert type(found["seconds"]) is float


def test_an_empty_variable_is_not_set() -> None:
    assert values(environment={"RADIXRT_COUNT": ""})["count"] == 3


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("RADIXRT_COUNT", "many", "RADIXRT_COUNT=many: use a whole number"),
        ("RADIXRT_IS_ON", "maybe", "use true or false"),
        ("RADIXRT_MODE", "fsat", "use slow, fast"),
        ("RADIXRT_SECONDS", "soon", "use a number"),
        ("RADIXRT_COUNT", "tcp://10.0.0.1:80", "enableServiceLinks: false"),
    ],
)
def test_a_variable_that_means_nothing_is_refused(variable: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        values(environment={variable: text})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("cuont = 3", "did you mean count"),
        ("something = 3", "known: name, count"),
        ('count = "3"', "use a whole number"),
        ("count = true", "use a whole number"),
        ("is_on = 1", "use true or false"),
        ("name = 1", "use a text in quotes"),
        ('mode = "x"', "use slow, fast"),
        ('names = "a"', "use a list"),
        ("count = ", "is not TOML"),
        ("[count]\nx = 1", "use a whole number"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "f.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        values(file=file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        values(file=tmp_path / "none.toml")


def test_variables_that_set_nothing_are_told_but_for_those_of_kubernetes() -> None:
    environment = {
        "RADIXRT_CUONT": "3",
        "RADIXRT_COUNT": "3",
        "RADIXRT_SERVICE_HOST": "10.0.0.1",
        "RADIXRT_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "HOME": "/",
    }
    (line,) = unknown_variables(SETTINGS, environment)
    assert "RADIXRT_CUONT" in line
    assert "did you mean RADIXRT_COUNT" in line


@given(
    count=st.integers(), seconds=st.floats(allow_nan=False), is_on=st.booleans(),
    names=st.lists(st.text(st.characters(categories=["L"]), min_size=1)),
)  # fmt: skip
def test_a_value_survives_a_variable(
    count: int, seconds: float, is_on: bool, names: list[str]
) -> None:
    environment = {
        "RADIXRT_COUNT": str(count),
        "RADIXRT_SECONDS": str(seconds),
        "RADIXRT_IS_ON": str(is_on),
        "RADIXRT_NAMES": ",".join(names),
    }
    found = values(environment=environment)
    assert (found["count"], found["seconds"], found["is_on"]) == (count, seconds, is_on)
    assert found["names"] == tuple(names)


# ---------------------------------------------------------------- the command


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["config", "show", *arguments])
    told = capsys.readouterr()
    assert not ended.value.code, told.err
    return told.out


def test_config_show_prints_a_file_that_sets_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("RADIXRT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RADIXRT_PAGE_SIZE", "8")
    arguments = ["--no-cache", "--model-name", "a", "--model-name", "b", "--disk", "/var/cache/kv"]
    text = shown(capsys, str(tmp_path), *arguments)
    sources = {line.split()[0]: line.rpartition("# ")[2] for line in text.splitlines()}
    assert sources["model"] == "argument"
    assert sources["page_size"] == "RADIXRT_PAGE_SIZE"
    assert sources["cache"] == "--no-cache"
    assert sources["memory"] == "default"
    known = settings_of(RuntimeConfig, ServeOptions)
    assert sources.keys() == known.keys()
    assert tomllib.loads(text)["model_name"] == ["a", "b"]
    # What is shown, as a file, shows the same.
    monkeypatch.delenv("RADIXRT_PAGE_SIZE")
    file = tmp_path / "shown.toml"
    file.write_text(text)
    again = shown(capsys, "--config", str(file))
    assert tomllib.loads(again) == tomllib.loads(text)
    monkeypatch.setenv("RADIXRT_CONFIG", str(file))
    assert shown(capsys) == again


def test_every_setting_of_the_http_process_can_be_set() -> None:
    """Each option changes the field that it is for, so none is forgotten or crossed."""
    given = ServeOptions(
        host="127.0.0.2",
        port=1,
        model_name=("a",),
        allowed_host=("b",),
        insecure=True,
        cors_origin=("c",),
        max_body="1KiB",
        max_connections=2,
        http_max_queue=3,
        request_timeout_s=4.0,
        access_log=True,
        redact=True,
        open_metrics=True,
    )
    keys = (ApiKey(name="k", key="k" * 20),)
    changed = given.gateway("ipc://x", keys, drain_s=5.0, log_format="json")
    plain = GatewaySettings(endpoint="ipc://x")
    same = [
        field.name
        for field in dataclasses.fields(GatewaySettings)
        if getattr(changed, field.name) == getattr(plain, field.name)
    ]
    assert same == ["endpoint", "title"]
    assert (changed.max_connections, changed.max_queue, changed.max_body_bytes) == (2, 3, 1024)
    assert (changed.model_names, changed.allowed_hosts) == (("a",), ("b",))
    assert changed.cors_origins == ("c",)
