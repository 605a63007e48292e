"""Random programs: what the client keeps of a branch is what the runtime has of it."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lang.sample_types import Even
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.protocol import Append, Generate, Select

STEPS = st.lists(
    st.one_of(
        st.text("ab\n é", max_size=4),
        st.sampled_from(["gen", "gen2", "checked", "select", "role", "fork", "copy", "join"]),
    ),
    max_size=12,
)


def play(s: rt.ProgramState, steps: list[str], seen: list[rt.ProgramState]) -> None:
    seen.append(s)
    for index, step in enumerate(steps):
        rest = steps[index + 1 :]
        match step:
            case "gen" | "gen2":
                s += rt.gen(f"x{index}", n=2 if step == "gen2" else 1)
            case "checked":
                s += rt.gen(f"x{index}", type=Even)
            case "select":
                s += rt.select(f"x{index}", ["a", "bc"])
            case "role":
                s += rt.user("u" + rt.gen(f"x{index}"))
            case "fork":
                for fork in s.fork(2):
                    play(fork, rest[:3], seen)
            case "copy":
                play(s.copy(), rest[:2], seen)
            case "join":
                with s.fork(2) as forks:
                    forks += lambda i: f"{i}" + rt.gen("joined")
            case _:
                s += step


def answer(text: str, generate: Generate) -> str:
    """Values are refused once or twice before one is accepted."""
    if generate.constraint is None:
        return f"<{len(text)}>"
    excluded = generate.constraint.exclude
    return f'{{"number":{1 if len(excluded) <= len(text) % 2 else len(text) * 2}}}'


@given(steps=STEPS, holding=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_client_and_runtime_agree_on_every_branch(steps: list[str], holding: bool) -> None:
    runtime = ScriptedRuntime(ping_interval_s=0.01)
    runtime.choose = lambda text, options: len(text) % len(options)
    runtime.answer = answer
    # What follows a join or a checked value waits for it.
    runtime.is_holding = holding and not {"join", "checked"} & set(steps)

    @rt.function
    def program(s: rt.ProgramState) -> None:
        seen: list[rt.ProgramState] = []
        play(s, steps, seen)
        runtime.stop_holding()
        for state in seen:
            rendered = "".join(span.text for span in state.execution.spans())
            assert state.text() == rendered
            state.close()
            state.execution._spans = None
            assert state.text() == rendered  # written out again from what the client kept

    with rt.Backend(runtime.transport) as backend:
        program.run(backend=backend)
        runtime.wait_for(lambda: not runtime.branches)
    # A step is one send: nothing is sent that no call, fork or read needed.
    for send in runtime.sends:
        appends = [message for message in send if isinstance(message, Append)]
        assert len(appends) <= 1
        assert len([m for m in send if isinstance(m, Generate | Select)]) <= 1
        assert not isinstance(send[-1], Append)
