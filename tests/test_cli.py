"""The command line, and a runtime in the caller's process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from fake_engine import FakeEngine, FakeLoop
from runtime_process import ROOT, ask, hello, receive_until
from tiny_tokenizer import write_model_directory

from radixrt import cli
from radixrt.config import RuntimeConfig
from radixrt.errors import ConfigError, ModelError, TransportError
from radixrt.local import start_local
from radixrt.protocol import Append, Finished, Generate, Goodbye, Open, Part, Sampling
from radixrt.runtime.local import LocalRuntime
from radixrt.runtime.serving.supervisor import dump_config, load_config


def radixrt(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "radixrt", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_lists_the_commands() -> None:
    result = radixrt("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in ("serve", "bench", "doctor", "keygen", "version"))


def test_every_option_of_a_runtime_is_an_option_of_serve() -> None:
    text = radixrt("serve", "--help").stdout
    missing = [
        field.name
        for field in fields(RuntimeConfig)
        if field.name != "model" and f"--{field.name.replace('_', '-')}" not in text
    ]
    assert not missing


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--memory", "lots"], "memory='lots'"),
        (["--endpoint", "tcp://0.0.0.0:5000"], "--curve-secret"),
        (["--allow", "x"], "belong together"),
        (["no/such/directory"], "no such directory"),
        (["--no-http", "--api-key-file", "x"], "http=false turns off"),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "192.0.2.1", "--insecure"], "cannot listen there"),
        (["--api-key-file", "no/such/file"], "cannot read keys"),
        (["--curve-secret", "x", "--allow", "y", "--endpoint", "ipc:///tmp/x"], "curve keys are"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(arguments: list[str], said: str) -> None:
    result = radixrt("serve", *arguments)
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_keygen_writes_a_pair_and_prints_the_public_key(tmp_path: Path) -> None:
    result = radixrt("keygen", str(tmp_path), "friend")
    assert len(result.stdout.split()[0]) == 40
    assert (tmp_path / "friend.key_secret").stat().st_mode & 0o077 == 0


def test_without_typer_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "pip install radixrt[runtime]" in capsys.readouterr().err


def test_a_config_survives_the_way_to_the_engine_process(tmp_path: Path) -> None:
    config = RuntimeConfig(model=tmp_path, cache=False, drain_s=1.5)
    assert load_config(dump_config(config)) == config
    assert load_config(dump_config(RuntimeConfig())) == RuntimeConfig()


# ---------------------------------------------------------------- in the caller's process


def local_runtime(path: Path) -> LocalRuntime:
    return LocalRuntime(
        RuntimeConfig(model=write_model_directory(path)),
        build_loop=lambda config, channel: FakeLoop(FakeEngine(400), channel),
    )


PROGRAM = [Open(1), Append(1, (Part("text", "x"),)), Generate(1, 1, Sampling(max_tokens=3))]


def test_a_local_runtime_serves_many_connections(tmp_path: Path) -> None:
    runtime = local_runtime(tmp_path)
    transports = [runtime.transport() for _ in range(3)]
    for transport in transports:
        hello(transport)
        (finished,) = ask(transport, PROGRAM, 1)
        assert isinstance(finished, Finished)
    runtime.shutdown()
    runtime.shutdown()
    for transport in transports:
        assert isinstance(transport.receive(5.0)[0], Goodbye)
        with pytest.raises(TransportError, match="shut down"):
            transport.receive(5.0)
    with pytest.raises(TransportError, match="shut down"):
        runtime.transport()


def test_a_local_engine_that_fails_ends_its_clients_and_hangs_nobody(tmp_path: Path) -> None:
    class Broken(FakeEngine):
        def step(self):  # type: ignore[no-untyped-def]
            if self.running:
                raise RuntimeError("a cosmic ray")
            return super().step()

    runtime = LocalRuntime(
        RuntimeConfig(model=write_model_directory(tmp_path)),
        build_loop=lambda config, channel: FakeLoop(Broken(400), channel),
    )
    transport = runtime.transport()
    hello(transport)
    answers = ask(transport, PROGRAM, 1)
    assert getattr(answers[0], "code", None) == "engine_fault"
    with pytest.raises(TransportError, match="cosmic ray"):
        receive_until(transport, lambda got: False)
    runtime.shutdown()


def test_an_engine_that_cannot_start_raises_its_error(tmp_path: Path) -> None:
    def build(config: object, channel: object) -> FakeLoop:
        raise ModelError("no such weights")

    with pytest.raises(ModelError, match="no such weights"):
        LocalRuntime(RuntimeConfig(model=write_model_directory(tmp_path)), build_loop=build)


def test_a_missing_package_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else found(name)
    )
    with pytest.raises(ConfigError, match=r"pip install radixrt\[runtime\]"):
        start_local()


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(ConfigError, match="pagesize"):
        start_local(pagesize=3)
