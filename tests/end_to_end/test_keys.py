"""The commands that talk to a runtime, at an endpoint that wants keys."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import radixrt as rt
from radixrt.cli import main

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Guarded:
    """A server with keys, and the folder of the keys."""

    endpoint: str
    keys: Path

    def options(self, name: str = "friend") -> list[str]:
        keys = ["--server-key", str(self.keys / "server.key")]
        keys += ["--client-key", str(self.keys / f"{name}.key_secret")]
        return ["--endpoint", self.endpoint, *keys]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    ready, allowed = folder / "ready", folder / "allowed"
    for name in ("server", "friend", "stranger"):
        made = radixrt("keygen", str(folder), name)
        if name == "friend":
            allowed.write_text(made.stdout)
    command = [sys.executable, "-m", "radixrt", "serve", "--no-http", "--memory", "256MiB"]
    command += ["--endpoint", "tcp://127.0.0.1:*", "--ready-file", str(ready)]
    command += ["--curve-secret", str(folder / "server.key_secret"), "--allow", str(allowed)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not ready.exists():
                assert process.poll() is None, "the server ended while it started"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.02)
            yield Guarded(ready.read_text().strip(), folder)
        finally:
            process.terminate()
            process.wait(20)


def radixrt(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "radixrt", *words]
    return subprocess.run(
        command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "Hello", "--max-tokens", "2"], ""),
        (["explain"], ""),
        (["top", "--once", "--every-s", "0.1"], "radixrt · nano"),
    ],
)
def test_a_command_with_the_right_keys_works(
    guarded: Guarded, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, out, err = run(capsys, *words, *guarded.options())
    assert code == 0, err
    assert out.strip()
    assert said in out


def test_a_chat_works_with_keys_from_a_file_and_the_environment(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file is that of a server as well, and its paths are relative to its folder.
    file = guarded.keys / "radixrt.toml"
    file.write_text('server_key = "server.key"\nclient_key = "friend.key_secret"\nport = 8001\n')
    monkeypatch.setenv("RADIXRT_CONFIG", str(file))
    monkeypatch.setenv("RADIXRT_ENDPOINT", guarded.endpoint)
    ended = radixrt("chat", "--max-tokens", "2", stdin="Hello\n")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()
    assert "sets no option" not in ended.stderr


@pytest.mark.parametrize("command", [["run", "Hello"], ["chat"], ["explain"], ["top"]])
@pytest.mark.parametrize("keys", ["none", "stranger", "other server"])
def test_a_command_without_the_right_keys_says_which_to_give(
    guarded: Guarded, capsys: pytest.CaptureFixture[str], command: list[str], keys: str
) -> None:
    options = guarded.options("stranger")
    said = "add that line to the file that `radixrt serve --allow` names"
    if keys == "none":
        options, said = options[:2], "give server_key and client_key"
    elif keys == "other server":
        options = [word.replace("server.key", "stranger.key") for word in guarded.options()]
        said = "server_key is not the public key"
    code, out, err = run(capsys, *command, *options)
    assert code == 1
    assert said in err
    assert not out


def test_a_program_is_told_as_well(guarded: Guarded) -> None:
    with pytest.raises(rt.KeysRefused):
        rt.connect(guarded.endpoint)
    keys = {
        "server_key": guarded.keys / "server.key",
        "client_key": guarded.keys / "friend.key_secret",
    }
    with rt.connect(guarded.endpoint, **keys) as backend:
        assert backend.get_model_name() == "nano"
