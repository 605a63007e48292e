"""A program of SGLang's frontend ports by changing its import: names, parameters, their order."""

from __future__ import annotations

import inspect

import pytest
from lang.scripted_runtime import ScriptedRuntime

import radixrt.lang as rt

POSITIONAL = {
    rt.gen: "name max_tokens min_tokens n stop stop_token_ids stop_regex temperature top_p top_k"
    " min_p frequency_penalty presence_penalty ignore_eos return_logprob logprob_start_len"
    " top_logprobs_num return_text_in_logprobs dtype choices choices_method regex json_schema",
    rt.select: "name choices temperature choices_method",
    rt.system: "expr",
    rt.user: "expr",
    rt.assistant: "expr",
    rt.ProgramState.fork: "self size position_ids_offset",
    rt.ProgramState.text_iter: "self var_name",
    rt.ProgramState.text_async_iter: "self var_name return_meta_data",
    rt.ProgramStateGroup.join: "self mode",
    rt.flush_cache: "backend",
    rt.get_server_info: "backend",
}


@pytest.mark.parametrize("function", POSITIONAL, ids=lambda function: function.__qualname__)
def test_parameters_come_in_sglangs_order(function: object) -> None:
    assert callable(function)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    assert names == POSITIONAL[function].split()


def test_a_ported_program_runs(runtime: ScriptedRuntime, backend: rt.Backend) -> None:
    sgl = rt

    @sgl.function
    def multi_turn(s, question_1, question_2):  # type: ignore[no-untyped-def]
        s += sgl.system("You are helpful.")
        s += sgl.user(question_1)
        s += sgl.assistant(sgl.gen("answer_1", max_tokens=16, stop=["\n"]))
        with s.user():
            s += question_2
        forks = s.fork(2)
        for i, fork in enumerate(forks):
            fork += sgl.assistant(f"{i}: " + sgl.gen("idea", max_tokens=8))
        forks.join()
        with s.copy() as side:
            side += sgl.assistant(sgl.gen("aside"))
        s += sgl.assistant_begin()
        s += sgl.select("pick", choices=["0", "1"], choices_method=sgl.greedy_token_selection)
        s += sgl.assistant_end()
        return s["pick"]

    sgl.set_default_backend(backend)
    try:
        state = multi_turn.run("a?", question_2="b?", temperature=0.1, max_new_tokens=64)
        states = multi_turn.run_batch(
            [{"question_1": "c?", "question_2": "d?"}] * 3, num_threads=2, progress_bar=False
        )
    finally:
        sgl.set_default_backend(None)
    assert state.ret_value == "0"
    assert len(state["idea"]) == 2
    assert len(state["aside"]) == 1
    assert [message["role"] for message in state.messages()] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert {state.ret_value for state in states} == {"0"}
    assert state.get_meta_info("answer_1")["finish_reason"]["type"] == "stop"
