"""Word problems solved by thought, action and observation, with a calculator for every sum."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from tools.nano.arithmetic import solve
from tools.nano.document import ASSISTANT, END, Document
from tools.nano.grammar import is_held_out, pick
from tools.nano.world import HE, ITEMS, SHE, capitalized, made_up_word

HEADER = (
    "Solve each problem. Use the tool calculator[expression] for arithmetic and finish with "
    "Answer: and the number.\n\n"
)
HEADERS = (
    HEADER,
    "Answer the question with the help of calculator[expression].\n\n",
    "You can think, call calculator[expression], and answer.\n\n",
    "Tools: calculator[expression]\n\n",
    "",
)
ACTION = re.compile(r"calculator\[(\d+)([-+*/])(\d+)\]")


@dataclass
class Step:
    thought: str
    a: int
    op: str
    b: int

    @property
    def result(self) -> int:
        return calculate(self.a, self.op, self.b)


@dataclass
class Problem:
    question: str
    steps: list[Step]

    @property
    def answer(self) -> int:
        return self.steps[-1].result


def calculate(a: int, op: str, b: int) -> int:
    return a // b if op == "/" else solve(a, op, b)


def chain(start: int, *moves: tuple[str, str, int]) -> list[Step]:
    """Steps that each work on the result before; a move is (thought, operator, number)."""
    steps: list[Step] = []
    value = start
    for thought, op, b in moves:
        steps.append(Step(thought, value, op, b))
        value = steps[-1].result
    return steps


class Scene:
    """The people, things and numbers of one problem."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.she = rng.random() < 0.5
        names = rng.sample(SHE if self.she else HE, 2)
        self.name = names[0] if rng.random() < 0.9 else capitalized(made_up_word(rng))
        self.other = names[1]
        self.sub = "she" if self.she else "he"
        self.item, self.item2, self.item3 = rng.sample(ITEMS, 3)
        self.box = pick(rng, ("boxes", "bags", "crates", "packs", "shelves", "baskets", "rows"))

    def n(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)


def _buy_more(s: Scene) -> Problem:
    a, b = s.n(3, 400), s.n(3, 400)
    how = pick(s.rng, ("buys", "finds", "gets", "receives", "collects"))
    return Problem(
        f"{s.name} has {a} {s.item} and {how} {b} more. How many {s.item} does {s.name} have now?",
        chain(a, (f"Add {b} to {a}.", "+", b)),
    )


def _give_away(s: Scene) -> Problem:
    a = s.n(20, 500)
    b = s.n(2, a - 1)
    how = pick(s.rng, ("gives away", "sells", "loses", "uses", "donates"))
    return Problem(
        f"{s.name} has {a} {s.item} and {how} {b} of them. How many {s.item} are left?",
        chain(a, (f"Subtract {b} from {a}.", "-", b)),
    )


def _boxes(s: Scene) -> Problem:
    a, b = s.n(2, 60), s.n(2, 60)
    return Problem(
        f"There are {a} {s.box} with {b} {s.item} each. How many {s.item} are there in all?",
        chain(a, (f"Multiply {a} by {b}.", "*", b)),
    )


def _share(s: Scene) -> Problem:
    b, c = s.n(2, 25), s.n(2, 40)
    return Problem(
        f"{s.name} shares {b * c} {s.item} equally among {b} friends. "
        f"How many {s.item} does each friend get?",
        chain(b * c, (f"Divide {b * c} by {b}.", "/", b)),
    )


def _boxes_then_give(s: Scene) -> Problem:
    a, b = s.n(3, 40), s.n(3, 40)
    c = s.n(2, a * b - 1)
    how = pick(s.rng, ("gives away", "sells", "loses", "uses"))
    return Problem(
        f"{s.name} has {a} {s.box} with {b} {s.item} each. {s.sub.capitalize()} {how} {c} "
        f"{s.item}. "
        f"How many {s.item} are left?",
        chain(a, (f"Multiply {a} by {b}.", "*", b), (f"Subtract {c}.", "-", c)),
    )


def _boxes_plus(s: Scene) -> Problem:
    a, b, c = s.n(3, 40), s.n(3, 40), s.n(2, 200)
    return Problem(
        f"{s.name} packs {a} {s.box} of {b} {s.item} and has {c} {s.item} left over. "
        f"How many {s.item} did {s.name} have?",
        chain(a, (f"Multiply {a} by {b}.", "*", b), (f"Add {c}.", "+", c)),
    )


def _cost(s: Scene) -> Problem:
    a, p = s.n(2, 30), s.n(2, 40)
    paid = a * p + s.n(1, 100)
    return Problem(
        f"{s.name} buys {a} {s.item} for {p} euros each and pays with {paid} euros. "
        f"How much change does {s.sub} get?",
        [
            Step(f"Multiply {a} by {p}.", a, "*", p),
            Step("Subtract the cost from the money.", paid, "-", a * p),
        ],
    )


def _two_goods(s: Scene) -> Problem:
    a, p, b, q = s.n(2, 30), s.n(2, 30), s.n(2, 30), s.n(2, 30)
    return Problem(
        f"{s.name} buys {a} {s.item} at {p} euros each and {b} {s.item2} at {q} euros each. "
        f"How much does {s.sub} pay in total?",
        [
            Step(f"Multiply {a} by {p}.", a, "*", p),
            Step(f"Multiply {b} by {q}.", b, "*", q),
            Step("Add the two costs.", a * p, "+", b * q),
        ],
    )


def _sum_then_share(s: Scene) -> Problem:
    d, e = s.n(2, 12), s.n(4, 50)
    total = d * e
    a = s.n(1, total - 1)
    return Problem(
        f"{s.name} has {a} {s.item} and {s.other} has {total - a} {s.item}. They put them together "
        f"and share them among {d} children. How many {s.item} does each child get?",
        chain(a, (f"Add {total - a} to {a}.", "+", total - a), (f"Divide by {d}.", "/", d)),
    )


def _weeks(s: Scene) -> Problem:
    a, w = s.n(2, 60), s.n(2, 30)
    b = s.n(1, 150)
    return Problem(
        f"{s.name} makes {a} {s.item} a day for {w} days and already had {b}. "
        f"How many {s.item} does {s.name} have now?",
        chain(a, (f"Multiply {a} by {w}.", "*", w), (f"Add {b}.", "+", b)),
    )


def _three_steps(s: Scene) -> Problem:
    a, b = s.n(3, 30), s.n(3, 30)
    c = s.n(1, a * b - 1)
    d = s.n(2, 200)
    return Problem(
        f"A shop has {a} {s.box} with {b} {s.item} each. On {pick(s.rng, _DAYS)} it sells {c} "
        f"{s.item} and then {d} new ones arrive. How many {s.item} does the shop have?",
        chain(
            a, (f"Multiply {a} by {b}.", "*", b), (f"Subtract {c}.", "-", c), (f"Add {d}.", "+", d)
        ),
    )


def _come_and_go(s: Scene) -> Problem:
    a = s.n(20, 300)
    b = s.n(2, a - 1)
    c = s.n(2, 200)
    return Problem(
        f"A bus carries {a} people over the day. {b} get off at the {pick(s.rng, _STOPS)} and {c} "
        "get on. How many people are on it now?",
        chain(a, (f"Subtract {b}.", "-", b), (f"Add {c}.", "+", c)),
    )


def _times_as_many(s: Scene) -> Problem:
    a, k = s.n(3, 90), s.n(2, 9)
    if s.rng.random() < 0.5:
        return Problem(
            f"{s.name} has {a} {s.item}. {s.other} has {k} times as many. "
            f"How many {s.item} do they have together?",
            chain(a, (f"Multiply {a} by {k}.", "*", k), (f"Add {a}.", "+", a)),
        )
    return Problem(
        f"{s.name} has {a} {s.item}. {s.other} has {k} times as many. "
        f"How many {s.item} does {s.other} have?",
        chain(a, (f"Multiply {a} by {k}.", "*", k)),
    )


def _more_than(s: Scene) -> Problem:
    a, b = s.n(10, 300), s.n(2, 200)
    return Problem(
        f"{s.name} has {a} {s.item}, which is {b} fewer than {s.other} has. "
        f"How many {s.item} do they have together?",
        chain(a, (f"Add {b} to {a}.", "+", b), (f"Add {a}.", "+", a)),
    )


def _pages(s: Scene) -> Problem:
    d, e = s.n(2, 20), s.n(3, 40)
    left = d * e
    a = s.n(5, 200)
    return Problem(
        f"A book has {left + a} pages and {s.name} has read {a}. If {s.sub} reads {e} pages a day, "
        "how many days does the rest take?",
        chain(left + a, (f"Subtract {a}.", "-", a), (f"Divide by {e}.", "/", e)),
    )


def _three_kinds(s: Scene) -> Problem:
    a, b, c = s.n(2, 200), s.n(2, 200), s.n(2, 200)
    return Problem(
        f"{s.name} has {a} {s.item}, {b} {s.item2} and {c} {s.item3}. "
        f"How many things does {s.sub} have in all?",
        chain(a, (f"Add {b} to {a}.", "+", b), (f"Add {c}.", "+", c)),
    )


def _save(s: Scene) -> Problem:
    w, k = s.n(2, 30), s.n(2, 40)
    b = s.n(1, w * k - 1)
    return Problem(
        f"{s.name} saves {w} euros a week for {k} weeks and then buys {s.item} for {b} euros. "
        "How many euros are left?",
        chain(w, (f"Multiply {w} by {k}.", "*", k), (f"Subtract {b}.", "-", b)),
    )


def _expression(s: Scene) -> Problem:
    a, b, c = s.n(2, 99), s.n(2, 99), s.n(2, 20)
    draw = s.rng.random()
    if draw < 0.4:
        op = pick(s.rng, "+-*")
        a, b = max(a, b) * (1 if op == "*" else 5), min(a, b)
        verb = {"+": "Add", "-": "Subtract", "*": "Multiply"}[op]
        return Problem(f"What is {a} {op} {b}?", chain(a, (f"{verb} the numbers.", op, b)))
    if draw < 0.7:
        return Problem(
            f"What is ({a} + {b}) * {c}?",
            chain(a, (f"Add {b} to {a}.", "+", b), (f"Multiply by {c}.", "*", c)),
        )
    return Problem(
        f"What is {a} * {c} + {b}?",
        chain(a, (f"Multiply {a} by {c}.", "*", c), (f"Add {b}.", "+", b)),
    )


_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_STOPS = ("station", "harbour", "market", "school", "museum", "park")
TEMPLATES: tuple[Callable[[Scene], Problem], ...] = (
    _buy_more, _give_away, _boxes, _share, _boxes_then_give, _boxes_plus, _cost, _two_goods,
    _sum_then_share, _weeks, _three_steps, _come_and_go, _times_as_many, _more_than, _pages,
    _three_kinds, _save, _expression,
)  # fmt: skip


def problem(rng: random.Random, held_out: bool) -> Problem:
    """A problem whose numbers, in their order, belong to the side asked for."""
    while True:
        template = pick(rng, TEMPLATES)
        drawn = template(Scene(rng))
        key = template.__name__ + str([(step.a, step.op, step.b) for step in drawn.steps])
        if is_held_out(key) == held_out:
            return drawn


def write_solution(document: Document, drawn: Problem) -> None:
    """`Thought:` and `Action:` are the model's, the observation is the tool's."""
    for step in drawn.steps:
        document.answer(
            f"Thought: {step.thought}\nAction: calculator[{step.a}{step.op}{step.b}]\nObservation:"
        ).silent(f" {step.result}\n")
    document.answer(f"Thought: I know the answer.\nAnswer: {drawn.answer}")


def training_document(rng: random.Random) -> Document:
    document = Document().filler(pick(rng, HEADERS))
    for _ in range(rng.randint(1, 5)):
        drawn = problem(rng, held_out=False)
        document.filler(f"Question: {drawn.question}\n")
        write_solution(document, drawn)
        document.answer("\n").filler("\n")
    return document


def chat_document(rng: random.Random) -> Document:
    document = Document()
    if rng.random() < 0.8:
        document.system(pick(rng, HEADERS[:-1]).strip())
    for _ in range(rng.randint(1, 3)):
        drawn = problem(rng, held_out=False)
        document.user(drawn.question).filler(f"{ASSISTANT}\n")
        write_solution(document, drawn)
        document.answer(END).filler("\n")
    return document


def items(rng: random.Random, count: int) -> list[dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    while len(found) < count:
        drawn = problem(rng, held_out=True)
        found[drawn.question] = {
            "question": drawn.question,
            "answer": drawn.answer,
            "num_steps": len(drawn.steps),
        }
    return list(found.values())


def worked_example(rng: random.Random) -> str:
    """One solved problem from the training side, for use as a shot."""
    document = Document()
    drawn = problem(rng, held_out=False)
    document.filler(f"Question: {drawn.question}\n")
    write_solution(document, drawn)
    return document.text + "\n\n"


def prompt(item: dict[str, object], shots: str = "") -> str:
    return f"{HEADER}{shots}Question: {item['question']}\n"


def run_action(text: str) -> str | None:
    """What the calculator answers to the last action in `text`; None when there is none."""
    found = ACTION.findall(text)
    if not found:
        return None
    a, op, b = found[-1]
    return "error" if op == "/" and int(b) == 0 else str(calculate(int(a), op, int(b)))
