from __future__ import annotations

from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.errors import Overloaded
from radixrt.protocol import Generate, Reply, Span


def test_generated_and_cached_spans_are_marked_and_escaped(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.answer = lambda text, generate: "<b>&"

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.user("<script>") + rt.assistant(rt.gen("x") + rt.select("y", ["z"]))

    state = program.run(backend=backend)
    for branch in runtime.branches.values():
        branch.spans[1] = Span("text", "<script>", 8, 5)
    html = state._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert 'title="text: 8 tokens, 5 cached"' in html
    assert "&lt;b&gt;&amp;" in html
    assert 'title="generated: 4 tokens, 0 cached"' in html
    assert 'title="chosen: 1 tokens' in html


def test_a_running_or_failed_state_is_shown_without_waiting(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    shown = []

    def full(text: str, generate: Generate) -> str:
        raise Overloaded("no <room>")

    @rt.function
    def program(s: rt.ProgramState) -> None:
        runtime.is_holding = True
        s += rt.user("a") + "b" + rt.gen("x")
        shown.append(s._repr_html_())
        assert "running" in repr(s)
        runtime.answer = full
        runtime.stop_holding()
        s.error()
        shown.append(s._repr_html_())

    state = program.run(backend=backend)
    assert "…" in shown[0]
    assert "no &lt;room&gt;" in shown[1]
    assert repr(state) == "<ProgramState open, 5 steps, variables: x>"


def test_without_a_runtime_what_the_client_knows_is_shown(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.user("hello") + rt.gen("x") + rt.select("y", ["z"])

    state = program.run(backend=backend)
    backend.shutdown()
    html = state._repr_html_()
    assert "hello" in html
    assert "[user]" in html
    assert "the client is closed" in html
    assert Reply not in map(type, runtime.messages)
