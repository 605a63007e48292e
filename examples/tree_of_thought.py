"""A tree of thought: forks propose a step each and judge it, they vote, the winner goes on."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from heldout import held_out, runtime, share

import radixrt as rt

INTRO = "Combine two numbers at a time until the target is left.\n\n"
STEP = re.compile(r" (\d+) ([-+*/]) (\d+) = (\d+), left ([\d ]+)")
VERDICTS = [" sure", " maybe", " impossible"]


def left_after(step: str, numbers: list[int]) -> list[int] | None:
    """Return the numbers left after ``step``, or None when it breaks the rules."""
    if not (match := STEP.fullmatch(step)):
        return None
    a, b, result = map(int, match.group(1, 3, 4))
    true = {"+": a + b == result, "-": a - b == result, "*": a * b == result, "/": a == b * result}
    left = [int(number) for number in match[5].split()]
    is_complete = Counter(numbers) - Counter([a, b]) + Counter([result]) == Counter(left)
    return left if true[match[2]] and is_complete and len(left) < len(numbers) else None


@rt.function
def solve(s, numbers, target, width):
    s += f"{INTRO}Numbers: {' '.join(map(str, numbers))}\nTarget: {target}"
    heat = 0.8 if width > 1 else 0.0  # one branch alone is greedy
    while numbers and len(numbers) > 1:
        s += "\nStep:"
        branches, votes = s.fork(width), Counter()
        branches += [rt.gen("step", 24, stop="\n", temperature=heat, seed=i) for i in range(width)]
        branches += "\nJudge:" + rt.select("verdict", VERDICTS)
        for branch in branches:
            logprobs = branch.get_meta_info("verdict")["normalized_prompt_logprobs"]
            sure, maybe, _ = map(math.exp, logprobs)
            votes[branch["step"]] += sure + maybe / 2
        winner = max(votes, key=votes.get)
        s = next(branch for branch in branches if branch["step"] == winner)
        numbers = left_after(winner, numbers)
    return numbers, s.text()


def evaluate(backend: rt.Backend, count: int = 40, width: int = 4) -> tuple[float, list[Any]]:
    puzzles = held_out("puzzles", count)
    states = solve.bind(width=width).run_batch(puzzles, backend=backend)
    right = [s.ret_value[0] == [p["target"]] for s, p in zip(states, puzzles, strict=True)]
    return share(right), states


if __name__ == "__main__":
    with runtime(__doc__) as backend:
        (greedy, _), (voted, states) = evaluate(backend, width=1), evaluate(backend)
        print(states[0].ret_value[1])
        print(f"solved: greedily {greedy:.3f}, by a vote of four branches {voted:.3f}")
