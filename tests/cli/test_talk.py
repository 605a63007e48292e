"""``radixrt run`` and ``radixrt chat``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_process import ROOT

import radixrt as rt
from radixrt import cli
from radixrt.cli.client_options import ClientOptions
from radixrt.cli.conversation import Conversation
from radixrt.cli.talk_options import Where, schema_of
from radixrt.errors import ConfigError, InvalidArgument, ProgramError

SOMEWHERE = ClientOptions(endpoint="ipc://x")
GREEDY = {"max_tokens": 24, "temperature": 0.0}


@pytest.fixture(scope="module")
def backend() -> Iterator[rt.Backend]:
    with rt.Runtime(dtype="float32") as runtime:
        yield runtime


def test_the_second_turn_finds_the_first_in_the_cache(backend: rt.Backend) -> None:
    talk = Conversation(backend, GREEDY, system="Answer in one sentence.")
    first = "".join(talk.say("My name is Bob."))
    assert talk.usage["completion_tokens"] > 0
    before = talk.usage["prompt_tokens"] + talk.usage["completion_tokens"]
    pieces = list(talk.say("What is my name?"))
    assert talk.usage["cached_tokens"] >= before - 1
    assert talk.usage["prompt_tokens"] > before
    assert first
    assert len(pieces) > 1, "the answer came whole"


def test_an_answer_that_is_stopped_stays_as_far_as_it_got(backend: rt.Backend) -> None:
    long = {"max_tokens": 400, "temperature": 0.0, "regex": "[a-z ]{300}"}
    stopped = Conversation(backend, long)
    pieces = stopped.say("Say something.")
    said = next(pieces) + next(pieces)
    pieces.close()
    stopped._gen_options = GREEDY
    answer = "".join(stopped.say("Go on."))
    # The same conversation, had it been like that from the beginning.
    told = rt.user("Say something.") + rt.assistant(said) + rt.user("Go on.")

    @rt.function
    def whole(s: rt.ProgramState) -> None:
        s += told
        s += rt.assistant(rt.gen("answer", **GREEDY))

    assert whole.run(backend=backend)["answer"] == answer


def test_a_message_that_fails_is_as_if_it_had_not_been_sent(backend: rt.Backend) -> None:
    talk, quiet = Conversation(backend, GREEDY), Conversation(backend, GREEDY)
    with pytest.raises(ProgramError, match="2048"):
        list(talk.say("word " * 3000))
    assert "".join(talk.say("Hello!")) == "".join(quiet.say("Hello!"))


def test_what_was_said_can_be_forgotten(backend: rt.Backend) -> None:
    talk = Conversation(backend, GREEDY)
    first = "".join(talk.say("Hello!"))
    "".join(talk.say("And now?"))
    talk.reset()
    assert "".join(talk.say("Hello!")) == first


def test_raw_text_is_gone_on_with(backend: rt.Backend) -> None:
    @rt.function
    def plain(s: rt.ProgramState) -> None:
        s += "The dog is"
        s += rt.gen("rest", **GREEDY)

    talk = Conversation(backend, GREEDY, is_raw=True)
    assert "".join(talk.say("The dog is")) == plain.run(backend=backend)["rest"]


def test_a_schema_is_given_as_text_or_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "integer"}')
    assert schema_of(str(file)) == schema_of('{"type": "integer"}')
    with pytest.raises(InvalidArgument, match="a file that holds one"):
        schema_of(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (Where(client=SOMEWHERE, url="http://x"), "give one"),
        (Where(client=SOMEWHERE, settings=("memory=1GiB",)), "leave out the model"),
        (Where(url="http://x", model=Path("/")), "leave out the model"),
        (Where(model=Path("/no/such/model")), "no such directory"),
    ],
)
def test_a_place_that_cannot_be_meant_is_refused(where: Where, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        where.check()


# ---------------------------------------------------------------- the commands


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_one_command_gives_an_answer_and_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.dumps(
        {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    )
    code, out, err = run(
        capsys, "run", "Is it?", "--json-schema", schema, "--set", "memory=256MiB", "--seed", "1"
    )
    assert code == 0, err
    assert isinstance(json.loads(out)["ok"], bool)
    assert re.search(r"prompt tokens, \d+ of them cached; \d+ generated", err)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "b", "c"], "the prompt in quotes"),
        (["no/such/model", "Hello"], "no such directory"),
        ([""], "the prompt is empty"),
        (["x", "--regex", "a", "--json-schema", "{}"], "drop one"),
        (["x", "--set", "memroy=1GiB"], "did you mean memory"),
        (["x", "--endpoint", "ipc:///no/such/socket", "--url", "http://x"], "give one"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, out, err = run(capsys, "run", *arguments)
    assert code == 1
    assert not out
    assert said in err
    assert err.count("\n") == 1


def test_an_endpoint_of_the_environment_gives_way_to_what_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADIXRT_ENDPOINT", "ipc:///no/such/socket")
    code, out, err = run(capsys, "run", "Hello", "--set", "memory=256MiB", "--max-tokens", "2")
    assert code == 0, err
    assert out


def test_ctrl_c_stops_the_answer_and_not_the_chat() -> None:
    command = [sys.executable, "-m", "radixrt", "chat", "--set", "memory=256MiB"]
    command += ["--max-tokens", "500", "--regex", "[ab]{400}", "--temperature", "0"]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"Say a lot.\n")
            process.stdin.flush()
            assert process.stdout.read1(), "no answer"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(b"/reset\nAgain.\n", timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert b"(stopped)" in err
    assert len(out) >= 400, "the chat did not go on"
    assert err.count(b"generated in") == 1
