from __future__ import annotations

import threading

import pytest
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.errors import InvalidArgument
from radixrt.protocol import Append, Close, Generate, Open, Part


def test_a_fork_shares_its_prefix_in_one_send_without_waiting(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "shared" + rt.gen("x")
        s += "tail"
        forks = s.fork(3)  # while x still runs
        forks += rt.gen("y")
        runtime.stop_holding()
        forks.join()

    state = program.run(backend=backend)
    first, second, *rest = runtime.sends
    assert [type(message) for message in first] == [Open, Append, Generate]
    root = first[0]
    assert isinstance(root, Open)
    assert [type(message) for message in second] == [Append, Open, Open, Open]
    assert [message.parent for message in second if isinstance(message, Open)] == [root.branch] * 3
    assert [[type(message) for message in send] for send in rest[:3]] == [[Generate]] * 3
    # Sent once: the prefix is nowhere repeated.
    assert [p.text for a in runtime.sent(Append) for p in a.parts] == ["shared", "tail"]
    assert state["y"] == ["<13>"] * 3


def test_fork_of_an_empty_state(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        forks = s.fork(2)
        forks += lambda i: f"fork {i}" + rt.gen("x")
        forks.join()

    assert program.run(backend=backend)["x"] == ["<6>", "<6>"]


def test_fork_before_any_generation(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "prefix "
        forks = s.fork(2)
        for i, fork in enumerate(forks):
            fork += f"{i}" + rt.gen("x")
        s += "own" + rt.gen("mine")
        s["texts"] = [fork.text() for fork in forks]

    state = program.run(backend=backend)
    assert state["texts"] == ["prefix 0<8>", "prefix 1<8>"]
    assert state.text() == "prefix own<10>"


def test_nested_forks_and_copies(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> list[str]:
        s += "a"
        texts = []
        for outer in s.fork(2):
            outer += "b"
            inner = outer.fork(2)
            inner += ["c", "d"]
            inner += rt.gen("x")
            copied = inner[1].copy()
            copied += "e"
            texts += [state.text() for state in (*inner, copied)]
        return texts

    assert program.run(backend=backend).ret_value == ["abc<3>", "abd<3>", "abd<3>e"] * 2


def test_join_gathers_what_is_new_in_the_forks_order(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s["old"] = 1
        s += "a"
        forks = s.fork(3)
        forks += [rt.gen("x"), "b" + rt.gen("x"), "bc" + rt.gen("x")]
        forks[2] += rt.gen("only")
        forks[0]["old"] = 2
        forks.join()
        assert forks[1]["x"] == "<2>"

    state = program.run(backend=backend)
    assert state["x"] == ["<1>", "<2>", "<3>"]
    assert state["only"] == ["<6>"]
    assert state["old"] == 1
    assert [info["prompt_tokens"] for info in state.get_meta_info("x")] == [1, 2, 3]


def test_join_can_append_what_the_forks_wrote(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "a:"
        forks = s.fork(2)
        forks += lambda i: f" {i}" + rt.gen("x")
        forks.join("concate_and_append")
        s += "|" + rt.gen("end")

    state = program.run(backend=backend)
    assert state.text() == "a: 0<4> 1<4>|<13>"
    assert state["x"] == ["<4>", "<4>"]


def test_joined_roles_are_appended_as_roles(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        forks = s.fork(2)
        forks += lambda i: rt.user(f"{i}")
        forks.join("concate_and_append")

    state = program.run(backend=backend)
    assert state.messages() == [{"role": "user", "content": "0"}, {"role": "user", "content": "1"}]
    assert state.text() == "<|user|>0<|end|><|user|>1<|end|>"


def test_a_group_joins_and_closes_at_the_end_of_its_context(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        with s.fork(2) as forks:
            forks += rt.gen("x")
        assert s["x"] == ["<0>", "<0>"]
        with s.copy() as copied:
            copied += rt.gen("y")
        assert s["y"] == ["<0>"]
        runtime.wait_for(lambda: len(runtime.branches) == 1)

    program.run(backend=backend)


def test_a_group_closes_its_forks_when_its_context_raises(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True

    @rt.function
    def program(s: rt.ProgramState) -> None:
        with s.fork(2) as forks:
            forks += rt.gen("x")
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        program.run(backend=backend)
    assert len(runtime.cancelled) == 2


def test_forks_that_nobody_holds_are_cancelled_and_closed(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.is_holding = True

    @rt.function
    def program(s: rt.ProgramState) -> None:
        forks = s.fork(2)
        forks += rt.gen("x")
        del forks
        runtime.wait_for(lambda: len(runtime.cancelled) == 2 and len(runtime.sent(Close)) == 2)

    program.run(backend=backend)


def test_forks_can_be_used_on_threads_of_their_own(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "a"
        forks = s.fork(8)

        def work(fork: rt.ProgramState) -> None:
            for i in range(20):
                fork += rt.gen(f"x{i}")
                fork["got"] = fork[f"x{i}"]

        threads = [threading.Thread(target=work, args=(fork,)) for fork in forks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        forks.join()

    texts = ["a"]
    for _ in range(20):
        texts.append(f"<{len(''.join(texts))}>")
    state = program.run(backend=backend)
    assert state["x19"] == [texts[-1]] * 8


def test_a_fork_keeps_an_open_scope_and_role(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.user_begin()
        s += "a"
        fork = s.fork(1)[0]
        fork += "b" + rt.user_end()
        assert fork.messages() == [{"role": "user", "content": "ab"}]
        s += "c" + rt.user_end()

    assert program.run(backend=backend).messages() == [{"role": "user", "content": "ac"}]


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_fork_takes_a_count(backend: rt.Backend, size: object) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s.fork(size)  # type: ignore[arg-type]

    with pytest.raises(InvalidArgument, match="size"):
        program.run(backend=backend)


def test_a_group_takes_one_expression_for_each_fork(backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        forks = s.fork(2)
        assert len(forks) == 2
        assert forks[-1] is list(forks)[1] is forks[0:][1]
        with pytest.raises(InvalidArgument, match="one for each"):
            forks += ["a"]
        with pytest.raises(InvalidArgument, match="expression"):
            forks += 5  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="cannot be exchanged"):
            forks[0] = s
        with pytest.raises(InvalidArgument, match="mode"):
            forks.join("other")  # type: ignore[arg-type]

    program.run(backend=backend)


def test_text_is_merged_up_to_the_fork(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        for word in ("a", "b", "c"):
            s += word
        fork = s.fork(1)[0]
        fork += rt.gen("x")
        fork.sync()

    program.run(backend=backend)
    assert [append.parts for append in runtime.sent(Append)] == [(Part("text", "abc"),)]
