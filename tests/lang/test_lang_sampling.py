from __future__ import annotations

import pytest
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt
from radixrt.errors import InvalidArgument
from radixrt.protocol import Generate, Sampling


def sampling_of(
    runtime: ScriptedRuntime, backend: rt.Backend, expression: object, **run: object
) -> Sampling:
    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += expression  # type: ignore[arg-type]

    program.run(backend=backend, **run)
    generate = runtime.sent(Generate)[-1]
    assert isinstance(generate, Generate)
    return generate.sampling


def test_defaults_are_the_protocols(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    assert sampling_of(runtime, backend, rt.gen()) == Sampling()


def test_every_option_travels(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    expression = rt.gen(
        "x",
        5,
        2,
        stop=["a", "b"],
        stop_token_ids=[7],
        stop_regex="c+",
        temperature=0.0,
        top_p=0.9,
        top_k=4,
        min_p=0.1,
        frequency_penalty=0.2,
        presence_penalty=-0.3,
        repetition_penalty=1.1,
        logit_bias={3: -1.5},
        seed=11,
        ignore_eos=True,
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=2,
    )
    assert sampling_of(runtime, backend, expression) == Sampling(
        max_tokens=5,
        min_tokens=2,
        stop=("a", "b"),
        stop_token_ids=(7,),
        stop_regex=("c+",),
        temperature=0.0,
        top_p=0.9,
        top_k=4,
        min_p=0.1,
        frequency_penalty=0.2,
        presence_penalty=-0.3,
        repetition_penalty=1.1,
        logit_bias=((3, -1.5),),
        seed=11,
        ignore_eos=True,
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=2,
    )


def test_what_a_generation_says_wins_over_what_run_says(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    sampling = sampling_of(
        runtime,
        backend,
        rt.gen(temperature=0.0, stop="own"),
        temperature=0.8,
        stop=["other"],
        max_new_tokens=9,
        top_k=-1,
    )
    assert (sampling.temperature, sampling.stop) == (0.0, ("own",))
    assert (sampling.max_tokens, sampling.top_k) == (9, 0)


def test_stop_lists_are_neither_changed_nor_watched(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    stop = ["\n"]
    expression = rt.gen("x", stop=stop, dtype=int)
    runtime.answer = lambda text, generate: "1"
    stop.append("later")
    assert sampling_of(runtime, backend, expression).stop == ("\n", " ", "\n")
    assert sampling_of(runtime, backend, expression).stop == ("\n", " ", "\n")
    assert stop == ["\n", "later"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("n", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 2),
        ("frequency_penalty", 3),
        ("repetition_penalty", 0),
        ("stop", ["a", 5]),
        ("stop", [""]),
        ("stop", 5),
        ("stop_token_ids", "ab"),
        ("stop_token_ids", [-1]),
        ("stop_regex", {"a": 1}),
        ("logit_bias", [1, 2]),
        ("logit_bias", {-1: 2.0}),
        ("seed", "a"),
        ("seed", 2**63),
        ("stop", "\ud800"),
        ("regex", "\ud800"),
        ("ignore_eos", 1),
        ("logprob_start_len", -2),
        ("deadline", -1),
        ("dtype", list),
        ("dtype", "list"),
        ("regex", ""),
        ("regex", 5),
        ("json_schema", "{"),
        ("json_schema", {1}),
        ("name", 5),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_where_it_is_given(
    option: str, value: object
) -> None:
    with pytest.raises(InvalidArgument, match=option):
        rt.gen(**{option: value})  # type: ignore[arg-type]


def test_options_that_exclude_each_other_are_refused(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    with pytest.raises(InvalidArgument, match=r"min_tokens=9.*max_tokens=5"):
        sampling_of(runtime, backend, rt.gen(min_tokens=9), max_tokens=5)
    with pytest.raises(InvalidArgument, match="return_logprob"):
        sampling_of(runtime, backend, rt.gen(top_logprobs_num=2))
    with pytest.raises(InvalidArgument, match="not both"):
        sampling_of(runtime, backend, rt.gen(), max_tokens=5, max_new_tokens=5)
    with pytest.raises(InvalidArgument, match="leave out regex"):
        rt.gen(dtype=int, regex="a")


def test_meta_info_has_sglangs_keys_and_keeps_logprobs_of_zero(
    runtime: ScriptedRuntime, backend: rt.Backend
) -> None:
    runtime.answer = lambda text, generate: "ab"

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += "hi" + rt.gen(
            "x", stop="!", return_logprob=True, top_logprobs_num=1, logprob_start_len=0
        )
        s += rt.gen("plain")

    state = program.run(backend=backend)
    assert state.get_meta_info("x") == {
        "prompt_tokens": 2,
        "cached_tokens": 0,
        "computed_tokens": 2,
        "evicted_tokens": 0,
        "completion_tokens": 2,
        "forced_tokens": 0,
        "finish_reason": {"type": "stop", "matched": "!"},
        "input_token_logprobs": [(0.0, ord("h"), "h"), (-0.5, ord("i"), "i")],
        "output_token_logprobs": [(0.0, ord("a"), "a"), (-0.5, ord("b"), "b")],
        "output_top_logprobs": [[(0.0, ord("a"), "a")], [(0.0, ord("b"), "b")]],
    }
    assert "output_token_logprobs" not in state.get_meta_info("plain")
    assert state.usage()["prompt_tokens"] == 6


def test_texts_of_logprobs_can_be_left_out(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    runtime.answer = lambda text, generate: "a"

    @rt.function
    def program(s: rt.ProgramState) -> None:
        s += rt.gen("x", return_logprob=True, return_text_in_logprobs=False)

    info = program.run(backend=backend).get_meta_info("x")
    assert info["output_token_logprobs"] == [(0.0, ord("a"), None)]
