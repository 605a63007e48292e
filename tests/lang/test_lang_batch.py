from __future__ import annotations

import gc
import io
import queue
import threading
import weakref
from collections.abc import Iterator

import pytest
from lang.scripted_runtime import ScriptedRuntime, interrupt_when

import radixrt.lang as rt
from radixrt.errors import DeadlineExceeded, InvalidArgument, Overloaded, ProgramError
from radixrt.lang.progress import ProgressBar
from radixrt.protocol import Generate


@rt.function
def echo(s: rt.ProgramState, word: str, mark: str = "!") -> str:
    s += word + mark + rt.gen("x")
    return word


def fail_on(runtime: ScriptedRuntime, *words: str) -> None:
    def answer(text: str, generate: Generate) -> str:
        if any(word in text for word in words):
            raise Overloaded(f"no room for {text}")
        return text.upper()

    runtime.answer = answer


def test_results_come_in_the_order_of_the_rows(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True
    count = 20

    def release_backwards() -> None:
        runtime.wait_for(lambda: len(runtime.held) == count)
        for call in sorted(runtime.held, reverse=True):
            runtime.release(call)

    thread = threading.Thread(target=release_backwards)
    thread.start()
    states = echo.run_batch([{"word": str(i)} for i in range(count)], backend=backend)
    thread.join()
    assert [state.ret_value for state in states] == [str(i) for i in range(count)]
    assert [state["x"] for state in states] == ["<2>"] * 10 + ["<3>"] * 10


def test_rows_may_be_sequences_of_arguments(backend: rt.Backend) -> None:
    states = echo.run_batch([("a",), ["b", "?"]], backend=backend)
    assert [state.text() for state in states] == ["a!<2>", "b?<2>"]
    bound = echo.bind(mark="#").run_batch([{"word": "a"}], backend=backend)
    assert bound[0].text() == "a#<2>"
    assert echo.run_batch([], backend=backend) == []


@pytest.mark.parametrize("row", ["a", (), ("a", "b", "c"), 5])
def test_a_row_that_does_not_fit_the_body_is_named(backend: rt.Backend, row: object) -> None:
    with pytest.raises(InvalidArgument, match=r"batch_kwargs\[1\]"):
        echo.run_batch([("a",), row], backend=backend)  # type: ignore[list-item]


@pytest.mark.parametrize(
    "options",
    [{"num_threads": 0}, {"max_in_flight": 0}, {"resume": True}, {"on_error": "skip"}, {"top": 1}],
)
def test_options_that_cannot_work_are_refused(
    backend: rt.Backend, options: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgument):
        echo.run_batch([("a",)], backend=backend, **options)  # type: ignore[call-overload]


def test_rows_in_flight_are_bounded_and_hold_no_thread(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True
    before = threading.active_count()
    most_threads = 0
    rows, bound = 60, 20

    def release() -> None:
        nonlocal most_threads
        for released in range(rows):
            started = min(rows, released + bound)
            runtime.wait_for(lambda started=started: len(runtime.sent(Generate)) >= started)
            most_threads = max(most_threads, threading.active_count() - before)
            runtime.release(min(runtime.held))

    thread = threading.Thread(target=release)
    thread.start()
    states = echo.run_batch(
        [(str(i),) for i in range(rows)], backend=backend, num_threads=3, max_in_flight=bound
    )
    thread.join()
    assert len(states) == rows
    assert runtime.max_in_flight == bound  # reached, never passed
    assert most_threads <= 3 + 1


def test_num_threads_bounds_the_rows_as_in_sglang(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def reads(s: rt.ProgramState, i: int) -> str:
        s += rt.gen("x")
        return str(s["x"])

    states = reads.run_batch([(i,) for i in range(30)], backend=backend, num_threads=2)
    assert len(states) == 30
    assert runtime.max_in_flight <= 2


def test_calls_beyond_the_runtimes_limit_wait_in_the_client() -> None:
    runtime = ScriptedRuntime(max_calls=4)
    runtime.is_holding = True
    with rt.Backend(runtime.transport) as backend:

        def release() -> None:
            for _ in range(30):
                runtime.wait_for(lambda: bool(runtime.held))
                runtime.release(min(runtime.held))

        thread = threading.Thread(target=release)
        thread.start()
        echo.run_batch([(str(i),) for i in range(30)], backend=backend)
        thread.join()
    assert runtime.max_in_flight <= 4


def test_the_first_failing_row_is_raised_with_its_number(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    fail_on(runtime, "3", "5")
    with pytest.raises(ProgramError, match="no room for 3") as caught:
        echo.run_batch([(str(i),) for i in range(8)], backend=backend)
    assert caught.value.__notes__ == ["in row 3 of run_batch"]
    runtime.wait_for(lambda: not runtime.branches)


def test_failures_can_be_kept_as_results(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    fail_on(runtime, "1")

    @rt.function
    def program(s: rt.ProgramState, i: int) -> None:
        s += str(i) + rt.gen("x")
        if i == 2:
            raise LookupError("mine")

    results = program.run_batch([(i,) for i in range(4)], backend=backend, on_error="keep")
    assert isinstance(results[0], rt.ProgramState)
    assert isinstance(results[1], ProgramError)
    assert isinstance(results[2], LookupError)
    assert results[3]["x"] == "3"


def test_a_generator_yields_as_rows_finish(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.is_holding = True
    results = echo.run_batch([("a",), ("b",)], backend=backend, generator_style=True)
    assert isinstance(results, Iterator)
    taken: queue.SimpleQueue[str] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: [taken.put(state.ret_value) for state in results])
    thread.start()
    runtime.wait_for(lambda: len(runtime.held) == 2)
    runtime.release(min(runtime.held))
    assert taken.get(timeout=10) == "a"  # while b still runs
    assert len(runtime.held) == 1
    runtime.release()
    assert taken.get(timeout=10) == "b"
    thread.join()


def test_a_generator_that_is_not_read_does_not_run_away(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    rows = [(str(i),) for i in range(100)]
    results = echo.run_batch(rows, backend=backend, generator_style=True, max_in_flight=2)
    assert runtime.sends == []  # nothing starts before it is read
    next(results)
    assert len(runtime.sent(Generate)) <= 2 * 4
    assert len(list(results)) == 99


def test_closing_a_generator_cancels_the_rest(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    rows = [(str(i),) for i in range(10)]
    results = echo.run_batch(rows, backend=backend, generator_style=True, max_in_flight=3)
    runtime.is_holding = True
    thread = threading.Thread(
        target=lambda: (
            runtime.wait_for(lambda: len(runtime.held) == 3),
            runtime.release(min(runtime.held)),
        )
    )
    thread.start()
    next(results)
    thread.join()
    results.close()
    runtime.wait_for(lambda: not runtime.held and not runtime.branches)
    assert len(runtime.sent(Generate)) <= 4
    assert len(runtime.cancelled) >= 2


def test_ctrl_c_cancels_every_row(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.is_holding = True
    thread = interrupt_when(runtime, lambda: len(runtime.held) == 5)
    with pytest.raises(KeyboardInterrupt):
        echo.run_batch([(str(i),) for i in range(5)], backend=backend)
    thread.join()
    runtime.wait_for(lambda: len(runtime.cancelled) == 5 and not runtime.branches)


def test_a_timeout_bounds_rows_that_hold_no_thread(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True
    (result,) = echo.run_batch([("a",)], backend=backend, timeout=0.02, on_error="keep")
    assert isinstance(result, ProgramError)
    assert isinstance(result.cause, DeadlineExceeded)


def test_rows_are_closed_when_they_end_and_stay_readable(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def chat(s: rt.ProgramState, i: int) -> None:
        s += rt.user(str(i)) + rt.assistant(rt.gen("x"))

    states = chat.run_batch([(i,) for i in range(3)], backend=backend)
    runtime.wait_for(lambda: not runtime.branches)
    assert [state.text()[:16] for state in states] == [f"<|user|>{i}<|end|>" for i in range(3)]
    assert states[1].messages()[1]["content"] == states[1]["x"]
    assert states[1].usage()["prompt_tokens"] > 0


def test_a_broken_runtime_ends_every_row(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.is_holding = True
    thread = threading.Thread(
        target=lambda: (
            runtime.wait_for(lambda: len(runtime.held) == 5),
            backend.shutdown(),
        )
    )
    thread.start()
    rows = [(str(i),) for i in range(10)]
    results = echo.run_batch(rows, backend=backend, on_error="keep", max_in_flight=5)
    thread.join()
    assert all(isinstance(result, ProgramError) for result in results)


def test_the_progress_bar_counts_rows(
    backend: rt.Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    echo.run_batch([(str(i),) for i in range(3)], backend=backend, progress_bar=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "echo [" in err
    assert "3/3" in err
    silent = io.StringIO()
    ProgressBar(None, 3, stream=silent).close()
    assert silent.getvalue() == ""


def test_a_body_that_caught_its_failure_is_no_failing_row(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    fail_on(runtime, "a")

    @rt.function
    def program(s: rt.ProgramState, word: str) -> str:
        s += word + rt.gen("x")
        try:
            return str(s["x"])
        except ProgramError:
            return "sorry"

    states = program.run_batch([("a",), ("b",)], backend=backend)
    assert [state.ret_value for state in states] == ["sorry", "B"]


def test_a_row_that_nobody_holds_is_freed_at_once(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    gc.collect()
    gc.disable()
    try:
        results = echo.run_batch([("a",), ("b",)], backend=backend, generator_style=True)
        references = [weakref.ref(state) for state in results]
        del results
        runtime.wait_for(lambda: not runtime.branches)
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()
