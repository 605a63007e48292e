"""Sums, differences and small products, written in several ways; answers come without working."""

from __future__ import annotations

import random

from tools.nano.document import Document
from tools.nano.grammar import is_held_out, pick

WORDS = {"+": "plus", "-": "minus", "*": "times"}
STYLES = (
    ("{a} {op} {b} =", " {c}", "\n"),
    ("{a}{op}{b}=", "{c}", "\n"),
    ("Q: What is {a} {word} {b}?\nA:", " {c}", "\n\n"),
    ("Question: What is {a} {op} {b}?\nAnswer:", " {c}", "\n\n"),
    ("Compute {a} {op} {b}.\nResult:", " {c}", "\n"),
)


def solve(a: int, op: str, b: int) -> int:
    return a + b if op == "+" else a - b if op == "-" else a * b


def number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def exercise(rng: random.Random, held_out: bool) -> tuple[int, str, int]:
    """Operands up to three digits for + and -, and for * up to 12 by 12 or two digits by one."""
    while True:
        op = pick(rng, "++--*")
        if op == "*":
            small = rng.random() < 0.5
            a = rng.randint(0, 12) if small else number(rng, 2)
            b = rng.randint(0, 12) if small else number(rng, 1)
            if rng.random() < 0.3:
                a, b = b, a
        else:
            a, b = number(rng, rng.randint(1, 3)), number(rng, rng.randint(1, 3))
            if op == "-" and a < b:
                a, b = b, a
        if is_held_out(f"{a}{op}{b}") == held_out:
            return a, op, b


def training_document(rng: random.Random) -> Document:
    document = Document()
    style = pick(rng, STYLES)
    for _ in range(rng.randint(1, 12)):
        a, op, b = exercise(rng, held_out=False)
        values = {"a": a, "op": op, "b": b, "word": WORDS[op], "c": solve(a, op, b)}
        ask, reply, gap = style
        document.filler(ask.format(**values)).answer(reply.format(**values)).answer(gap)
    return document


def chat_document(rng: random.Random) -> Document:
    document = Document()
    if rng.random() < 0.3:
        document.system("You are good at arithmetic.")
    for _ in range(rng.randint(1, 5)):
        a, op, b = exercise(rng, held_out=False)
        short = rng.random() < 0.5
        word = pick(rng, (WORDS[op], op))
        document.user(
            pick(rng, ("What is {} {} {}?", "Compute {} {} {}.")).format(a, word, b)
            + (" Answer with the number." if short else "")
        )
        value = str(solve(a, op, b))
        document.assistant(value if short else f"{a} {word} {b} is {value}.")
    return document


def items(rng: random.Random, count: int) -> list[dict[str, object]]:
    found: dict[tuple[int, str, int], dict[str, object]] = {}
    while len(found) < count:
        a, op, b = exercise(rng, held_out=True)
        found[a, op, b] = {"a": a, "op": op, "b": b, "answer": solve(a, op, b)}
    return list(found.values())


def prompt(item: dict[str, object]) -> str:
    return f"Question: What is {item['a']} {item['op']} {item['b']}?\nAnswer:"
