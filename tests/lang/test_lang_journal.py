from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.errors import InvalidArgument, JournalError, Overloaded
from radixrt.protocol import Generate


@rt.function
def program(s: rt.ProgramState, word: str) -> dict[str, str]:
    s += word + rt.gen("x")
    return {"word": word}


ROWS = [("a",), ("bb",), ("ccc",)]


def lines_of(path: Path) -> list[dict[str, object]]:
    return sorted((orjson.loads(line) for line in path.read_bytes().splitlines()), key=index_of)


def index_of(line: dict[str, object]) -> int:
    index = line["index"]
    assert isinstance(index, int)
    return index


def test_each_finished_row_is_one_line(backend: rt.Backend, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    program.run_batch(ROWS, backend=backend, journal=str(path))
    lines = lines_of(path)
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert lines[1]["ret_value"] == {"word": "bb"}
    assert lines[1]["vars"] == {"x": "<2>"}
    assert lines[1]["error"] is None
    usage = lines[1]["usage"]
    assert isinstance(usage, dict)
    assert usage["prompt_tokens"] == 2


def test_a_row_is_written_when_it_finishes(backend: rt.Backend, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    results = program.run_batch(
        ROWS, backend=backend, journal=str(path), generator_style=True, max_in_flight=1
    )
    next(results)
    assert len(lines_of(path)) >= 1
    results.close()


def test_resuming_skips_finished_rows_and_keeps_their_order(
    runtime: ScriptedRuntime, backend: rt.Backend, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    program.run_batch(ROWS, backend=backend, journal=str(path))
    kept = [line for line in path.read_bytes().splitlines(True) if orjson.loads(line)["index"] != 1]
    path.write_bytes(b"".join(kept))
    before = len(runtime.sent(Generate))
    results = program.run_batch(ROWS, backend=backend, journal=str(path), resume=True)
    assert len(runtime.sent(Generate)) - before == 1
    assert [result["x"] for result in results] == ["<1>", "<2>", "<3>"]
    assert [result.ret_value["word"] for result in results] == ["a", "bb", "ccc"]
    first = results[0]
    assert isinstance(first, rt.FinishedRow)
    assert "x" in first
    assert first.usage()["prompt_tokens"] == 1
    assert first.error() is None
    with pytest.raises(InvalidArgument, match="known: x"):
        first["y"]
    assert isinstance(results[1], rt.ProgramState)
    assert [line["index"] for line in lines_of(path)] == [0, 1, 2]


def test_a_torn_last_line_is_dropped(
    runtime: ScriptedRuntime, backend: rt.Backend, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    program.run_batch(ROWS[:1], backend=backend, journal=str(path))
    whole = path.read_bytes()
    for torn in (
        b'{"index": 1, "ke',
        b'{"index": 1}',
        whole[:-1].replace(b'"index":0', b'"index":1'),
    ):
        path.write_bytes(whole + torn)
        results = program.run_batch(ROWS, backend=backend, journal=str(path), resume=True)
        assert [result["x"] for result in results] == ["<1>", "<2>", "<3>"]
        assert [line["index"] for line in lines_of(path)] == [0, 1, 2]


def test_a_damaged_line_that_is_not_the_last_is_an_error(
    backend: rt.Backend, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"nonsense\n")
    with pytest.raises(JournalError, match="line 1"):
        program.run_batch(ROWS, backend=backend, journal=str(path), resume=True)


def test_other_arguments_are_an_error_that_names_the_row(
    backend: rt.Backend, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    program.run_batch(ROWS, backend=backend, journal=str(path))
    with pytest.raises(JournalError, match="row 1 had other arguments"):
        program.run_batch(
            [ROWS[0], ("changed",), ROWS[2]], backend=backend, journal=str(path), resume=True
        )
    with pytest.raises(JournalError, match="row 2 is not one of this run's 2 rows"):
        program.run_batch(ROWS[:2], backend=backend, journal=str(path), resume=True)


def test_an_existing_journal_is_not_overwritten(backend: rt.Backend, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    program.run_batch(ROWS, backend=backend, journal=str(path))
    before = path.read_bytes()
    with pytest.raises(JournalError, match="resume=True"):
        program.run_batch(ROWS, backend=backend, journal=str(path))
    assert path.read_bytes() == before


def test_failed_rows_are_written_and_run_again(
    runtime: ScriptedRuntime, backend: rt.Backend, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    answer = runtime.answer

    def full(text: str, generate: Generate) -> str:
        if text == "bb":
            raise Overloaded("full")
        return answer(text, generate)

    runtime.answer = full
    program.run_batch(ROWS, backend=backend, journal=str(path), on_error="keep")
    (failed,) = [line for line in lines_of(path) if line["error"]]
    assert str(failed["error"]).startswith("ProgramError: ")
    runtime.answer = answer
    results = program.run_batch(ROWS, backend=backend, journal=str(path), resume=True)
    assert [result["x"] for result in results] == ["<1>", "<2>", "<3>"]


def test_values_that_are_not_json_are_refused_naming_the_row(
    backend: rt.Backend, tmp_path: Path
) -> None:
    @rt.function
    def returns_an_object(s: rt.ProgramState, i: int) -> object:
        return object()

    with pytest.raises(JournalError, match="row 0"):
        returns_an_object.run_batch([(1,)], backend=backend, journal=str(tmp_path / "a"))
    with pytest.raises(JournalError, match="row 1"):
        program.run_batch([("a",), (object(),)], backend=backend, journal=str(tmp_path / "b"))


def test_a_journal_that_cannot_be_opened_is_an_error(backend: rt.Backend, tmp_path: Path) -> None:
    for resume in (False, True):
        with pytest.raises(JournalError):
            program.run_batch(
                ROWS, backend=backend, journal=str(tmp_path / "no" / "dir"), resume=resume
            )


def test_a_variable_whose_failure_the_body_met_is_left_out(
    runtime: ScriptedRuntime, backend: rt.Backend, tmp_path: Path
) -> None:
    def full(text: str, generate: Generate) -> str:
        raise Overloaded("full")

    @rt.function
    def forgiving(s: rt.ProgramState) -> str:
        s += rt.gen("x")
        return "ok" if s.error() is None else "failed"

    runtime.answer = full
    path = tmp_path / "out.jsonl"
    forgiving.run_batch([{}], backend=backend, journal=path)
    (line,) = lines_of(path)
    assert (line["ret_value"], line["vars"], line["error"]) == ("failed", {}, None)


def test_a_generator_that_is_never_read_opens_no_file(backend: rt.Backend, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    program.run_batch(ROWS, backend=backend, journal=path, generator_style=True)
    assert not path.exists()
