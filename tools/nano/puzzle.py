"""Reach a target from some numbers: a step proposes an operation, a judge says "
"what hope is left."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import lru_cache

from tools.nano.document import Document
from tools.nano.grammar import is_held_out, pick

SURE, MAYBE, IMPOSSIBLE = "sure", "maybe", "impossible"
LARGEST_TARGET = 100
STEP = re.compile(r"\s*(\d+) ([-+*/]) (\d+) = (\d+), left ((?:\d+ ?)+)\s*$")
INTRO = "Combine two numbers at a time until the target is left.\n\n"


@dataclass(frozen=True)
class Move:
    a: int
    op: str
    b: int
    result: int
    left: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.a} {self.op} {self.b} = {self.result}, left {' '.join(map(str, self.left))}"


def moves(numbers: tuple[int, ...]) -> list[Move]:
    """Every legal step: no negative results, no fractions; the larger operand comes first."""
    found = []
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            a, b = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
            rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
            results = [("+", a + b), ("-", a - b), ("*", a * b)]
            if b > 1 and a % b == 0:
                results.append(("/", a // b))
            found += [Move(a, op, b, c, (*rest, c)) for op, c in results if c < 1000]
    return found


@lru_cache(maxsize=50_000)
def _reachable(numbers: tuple[int, ...]) -> frozenset[int]:
    if len(numbers) == 1:
        return frozenset(numbers)
    return frozenset().union(*(_reachable(tuple(sorted(m.left))) for m in moves(numbers)))


def can_reach(numbers: tuple[int, ...], target: int) -> bool:
    return target in _reachable(tuple(sorted(numbers)))


def verdict(left: tuple[int, ...], target: int) -> str:
    """sure: at most one step away; maybe: reachable, but further; impossible: out of reach."""
    if not can_reach(left, target):
        return IMPOSSIBLE
    return SURE if len(left) <= 2 else MAYBE


def puzzle(rng: random.Random, held_out: bool, size: int = 3) -> tuple[tuple[int, ...], int]:
    """Numbers from 1 to 20 and a reachable target from 5 to 100 that is none of the numbers."""
    while True:
        numbers = tuple(rng.randint(1, 20 if size == 3 else 12) for _ in range(size))
        targets = sorted(n for n in _reachable(tuple(sorted(numbers))) if 5 <= n <= LARGEST_TARGET)
        if not targets:
            continue
        target = pick(rng, targets)
        key = f"{sorted(numbers)} {target}"
        if target not in numbers and is_held_out(key) == held_out:
            return numbers, target


def head(numbers: tuple[int, ...], target: int) -> str:
    return f"Numbers: {' '.join(map(str, numbers))}\nTarget: {target}\n"


def propose(rng: random.Random, numbers: tuple[int, ...], target: int) -> Move:
    """A legal step: a good one in five of six cases, if there is one."""
    legal = moves(numbers)
    good = [m for m in legal if can_reach(m.left, target)]
    return pick(rng, good if good and rng.random() < 0.84 else legal)


def training_document(rng: random.Random) -> Document:
    """Puzzles with steps and judgements; some steps lead nowhere, and the judge says so."""
    document = Document()
    if rng.random() < 0.5:
        document.filler(INTRO)
    for _ in range(rng.randint(1, 4)):
        size = 3 if rng.random() < 0.75 else 4
        numbers, target = puzzle(rng, held_out=False, size=size)
        if rng.random() < 0.3:
            _write_judgements(document, rng, numbers, target)
            continue
        judged = rng.random() < 0.7
        document.filler(head(numbers, target))
        while len(numbers) > 1:
            step = propose(rng, numbers, target)
            numbers = step.left
            document.answer(f"Step: {step}\n")
            if judged:
                document.filler("Judge:").label(f" {verdict(numbers, target)}").answer("\n")
        document.filler("\n")
    return document


def _write_judgements(
    document: Document, rng: random.Random, numbers: tuple[int, ...], target: int
) -> None:
    """Several random steps from one state, each with its verdict; no step follows another."""
    for _ in range(rng.randint(2, 5)):
        step = pick(rng, moves(numbers)) if rng.random() < 0.5 else propose(rng, numbers, target)
        document.filler(f"{head(numbers, target)}Step: {step.a} {step.op} {step.b} =")
        document.answer(f" {step.result}, left {' '.join(map(str, step.left))}\n")
        document.filler("Judge:").label(f" {verdict(step.left, target)}").filler("\n\n")


def items(rng: random.Random, count: int, size: int = 3) -> list[dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    while len(found) < count:
        numbers, target = puzzle(rng, held_out=True, size=size)
        found[f"{sorted(numbers)} {target}"] = {"numbers": list(numbers), "target": target}
    return list(found.values())


def prompt(item: dict[str, object]) -> str:
    return INTRO + head(tuple(item["numbers"]), int(item["target"]))  # type: ignore[arg-type,call-overload]


def legal_step(text: str, numbers: tuple[int, ...]) -> tuple[int, ...] | None:
    """The numbers left after the step written in `text`, or None when it is wrong or illegal."""
    match = STEP.match(text)
    if match is None:
        return None
    left = tuple(int(n) for n in match[5].split())
    found = (int(match[1]), match[2], int(match[3]), int(match[4]))
    for move in moves(numbers):
        if (move.a, move.op, move.b, move.result) == found and sorted(move.left) == sorted(left):
            return left
    return None
