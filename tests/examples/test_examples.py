"""Every example runs as a newcomer would run it, on the model that ships, and is right."""

from __future__ import annotations

import contextlib
import importlib
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import radixrt as rt

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = (
    "few_shot",
    "react_agent",
    "tree_of_thought",
    "chat",
    "extract_json",
    "extract_models",
    "tool_agent",
    "sql",
    "route",
    "batch_journal",
)
NUM_ITEMS = 12
Run = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def backend() -> Iterator[rt.Backend]:
    with rt.Runtime() as runtime:
        yield runtime


@pytest.fixture
def import_example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture
def run(
    backend: rt.Backend,
    import_example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run an example's main part on ``backend`` and few items; returns its names."""
    heldout = import_example("heldout")
    every = heldout.held_out

    def few(name: str, count: int | None = None) -> list[dict[str, Any]]:
        return every(name, count if "_shots" in name else NUM_ITEMS)

    monkeypatch.setattr(heldout, "held_out", few)
    monkeypatch.setattr(heldout, "runtime", lambda _: contextlib.nullcontext(backend))
    return lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", [*NAMES, "heldout"])
def test_an_example_fits_on_a_screen(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 60


def test_few_shot_classifies_and_computes_shots_once_a_subject(
    run: Run, backend: rt.Backend
) -> None:
    backend.flush_cache()
    names = run("few_shot")
    assert names["accuracy"] >= 0.95
    assert len(names["states"]) == 4 * NUM_ITEMS
    first, *others = [usage["cached_tokens"] / usage["prompt_tokens"] for usage in names["usage"]]
    assert first < 0.1
    assert min(others[len(names["SUBJECTS"]) :]) > 0.9


def test_the_agent_solves_problems_with_its_calculator(run: Run) -> None:
    names = run("react_agent")
    assert names["accuracy"] >= 0.9
    assert all(isinstance(state.ret_value, int) for state in names["states"])
    assert all("\nObservation: " in state.text() for state in names["states"])


@pytest.mark.parametrize(
    ("expression", "value"),
    [("12*7", 84), ("2+3*4", 14), ("(2+3)*4", 20), ("336/12", 28), ("1-2-3", -4)],
)
def test_the_calculator_computes(
    import_example: Callable[[str], ModuleType], expression: str, value: int
) -> None:
    assert import_example("react_agent").calculate(expression) == value


@pytest.mark.parametrize("expression", ["", "2**9", "abs(1)", "x", "'a'", "1/0", "True", "1.5"])
def test_the_calculator_refuses_what_is_not_arithmetic(
    import_example: Callable[[str], ModuleType], expression: str
) -> None:
    with pytest.raises((ArithmeticError, SyntaxError, ValueError)):
        import_example("react_agent").calculate(expression)


def test_the_vote_of_a_tree_solves_more_than_greedy_steps(run: Run) -> None:
    names = run("tree_of_thought")
    assert names["voted"] > names["greedy"]
    assert all(state.ret_value[1].startswith("Combine") for state in names["states"])


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (" 16 * 3 = 48, left 17 48", [17, 48]),
        (" 17 - 16 = 1, left 3 1", [3, 1]),
        (" 16 * 3 = 47, left 17 47", None),
        (" 16 * 4 = 64, left 17 64", None),
        (" 16 * 3 = 48, left 48", None),
        (" 17 - 17 = 0, left 3 16 0", None),
        ("", None),
    ],
)
def test_a_step_against_the_rules_leaves_nothing(
    import_example: Callable[[str], ModuleType], step: str, left: list[int] | None
) -> None:
    assert import_example("tree_of_thought").left_after(step, [3, 16, 17]) == left


def test_the_chat_remembers_facts_over_turns(run: Run) -> None:
    names = run("chat")
    assert names["accuracy"] >= 0.95
    assert names["state"].messages()[-1] == {
        "role": "assistant",
        "content": names["state"]["hello"],
    }
    assert "Eva" in names["state"]["hello"]


def test_extraction_returns_records_with_typed_values(run: Run) -> None:
    names = run("extract_json")
    assert names["accuracy"] >= 0.9
    for state in names["states"]:
        for key, value in state.ret_value.items():
            assert isinstance(value, int if key in names["INTEGERS"] else str) or value is None


def test_extraction_into_models_returns_instances_that_are_right(run: Run) -> None:
    names = run("extract_models")
    assert names["accuracy"] >= 0.95
    assert {type(state.ret_value) for state in names["states"]} == set(names["MODELS"].values())


def test_the_agent_calls_its_tools_with_values_of_their_types(run: Run) -> None:
    names = run("tool_agent")
    assert names["accuracy"] == 1.0
    order = names["states"][0]["calls"][0]
    assert order.arguments == {"item": "belts", "quantity": 12, "color": "green"}


def test_questions_become_queries_of_the_table(run: Run) -> None:
    names = run("sql")
    assert names["accuracy"] == 1.0
    assert all(state["query"].startswith(" SELECT name FROM people") for state in names["states"])


def test_the_router_takes_one_of_its_options(run: Run) -> None:
    assert run("route")["accuracy"] >= 0.95


def test_a_resumed_batch_keeps_what_its_journal_holds(run: Run) -> None:
    names = run("batch_journal")
    assert names["accuracy"] >= 0.9
    assert NUM_ITEMS // 2 <= names["kept"] < NUM_ITEMS
    assert all(isinstance(result.ret_value, int) for result in names["results"])
