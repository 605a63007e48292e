"""A ReAct agent: the model writes ``Action: calculator[12*7]``, the program appends what the
calculator says, and so on until the model answers.
"""

from __future__ import annotations

import ast
import operator
import re
from typing import Any

from heldout import held_out, runtime, share

import radixrt as rt

HEADER = "Answer the question with the help of calculator[expression].\n\n"
SUMS = {ast.Add: operator.add, ast.Sub: operator.sub}
OPERATORS = {**SUMS, ast.Mult: operator.mul, ast.Div: operator.floordiv}


def calculate(expression: str) -> int:
    """Return the value of whole numbers with + - * / and parentheses; else ValueError."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        return int(ast.unparse(node))

    return value(ast.parse(expression, mode="eval").body)


@rt.function
def solve(s, question, shots="", max_steps=5):
    s += HEADER + shots + f"Question: {question}\n"
    for step in range(max_steps):
        s += rt.gen(f"{step}", max_tokens=48, stop=["Observation:", "\n\n"], temperature=0)
        if answer := re.search(r"Answer: (-?\d+)", s[f"{step}"]):
            return int(answer[1])
        action = re.search(r"calculator\[(.*)\]", s[f"{step}"])
        try:
            result = calculate(action[1] if action else "")
        except (ArithmeticError, SyntaxError, ValueError) as error:
            result = error
        s += f"Observation: {result}\n"


def evaluate(backend: rt.Backend, count: int = 40, num_shots: int = 4) -> tuple[float, list[Any]]:
    shots = "".join(shot["text"] for shot in held_out("word_problem_shots", num_shots))
    problems = held_out("word_problems", count)
    batch = [{"question": problem["question"], "shots": shots} for problem in problems]
    states = solve.run_batch(batch, backend=backend)
    right = [s.ret_value == p["answer"] for s, p in zip(states, problems, strict=True)]
    return share(right), states


if __name__ == "__main__":
    with runtime(__doc__) as backend:
        accuracy, states = evaluate(backend)
        print(states[0].text().rpartition("\n\nQuestion:")[2])
        print(f"\naccuracy {accuracy:.3f} on {len(states)} problems")
