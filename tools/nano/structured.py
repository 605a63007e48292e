"""The JSON and tool tasks on the runtime, free and under constraints.

python -m tools.nano.structured --count 100

Free means: the model writes a line in the form it was trained on, and what it wrote is parsed. For
each task and way the table says how often the text was valid (it parsed and fitted the schema) and
how often it was right.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

import radixrt as rt
from tools.nano.grammar import is_held_out, pick
from tools.nano.world import CITIES, COLORS, DAYS, ITEMS

HELD_OUT = Path(rt.__file__).parent / "models" / "nano" / "heldout"
INTEGERS = {"age", "guests", "price", "quantity"}
MENU = {
    "shop": "orders goods and groceries",
    "weather": "rain, sun and temperature",
    "calendar": "appointments and dates",
    "music": "plays songs and albums",
}
SLOTS = {
    "shop": ("item", "quantity", "color"),
    "weather": ("city", "day"),
    "calendar": ("day",),
    "music": (),
}
REQUESTS = {
    "shop": ("order {quantity} {color} {item}.", "order {quantity} {item}."),
    "weather": ("will it rain in {city} on {day}?", "how warm is it in {city}?"),
    "calendar": ("what is planned for {day}?", "am I free on {day}?"),
    "music": ("skip to the next song.", "turn up the volume of this song."),
}
VALUES: dict[str, list[Any]] = {
    "item": ITEMS,
    "color": COLORS,
    "city": CITIES,
    "day": DAYS,
    "quantity": list(range(2, 100)),
}


@dataclass(frozen=True)
class Score:
    """Shares of all items."""

    valid: float
    right: float


Item = dict[str, Any]


def extraction_items(count: int) -> list[Item]:
    lines = (HELD_OUT / "extraction.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def tool_items(count: int) -> list[Item]:
    """Requests from the training text's templates, of its held-out side, with the calls they ask
    for: {"text", "tool", "arguments"}."""

    def requests() -> Iterator[Item]:
        rng = random.Random("tool calls")
        while True:
            tool = pick(rng, list(MENU))
            template = pick(rng, REQUESTS[tool])
            values = {name: pick(rng, VALUES[name]) for name in SLOTS[tool]}
            text = template.format(**values)
            arguments = {n: v if f"{{{n}}}" in template else None for n, v in values.items()}
            if is_held_out(text) or not values:
                yield {"text": text, "tool": tool, "arguments": arguments}

    made = requests()
    return [next(made) for _ in range(count)]


def record_schema(keys: list[str]) -> dict[str, Any]:
    kinds = {key: "integer" if key in INTEGERS else "string" for key in keys}
    return {
        "type": "object",
        "properties": {key: {"type": [kind, "null"]} for key, kind in kinds.items()},
        "required": keys,
        "additionalProperties": False,
    }


def parsed(text: str, schema: dict[str, Any]) -> Any:
    """The value of a text that is valid, None for any other."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if jsonschema.Draft202012Validator(schema).is_valid(value) else None


def json_prompt(kind: str, keys: list[str], text: str) -> str:
    return f"Extract the {kind} as JSON with the keys {', '.join(keys)}.\nText: {text}\nJSON:"


@rt.function
def extract(s: rt.ProgramState, item: Item, way: str, temperature: float, seed: int) -> Any:
    schema = record_schema(item["keys"])
    options: dict[str, Any] = {"max_tokens": 110, "temperature": temperature, "seed": seed}
    if way == "free":
        options["stop"] = "\n"
    else:
        options |= {"json_schema": schema, "spaced": way == "spaced"}
    s += json_prompt(item["kind"], item["keys"], item["text"]) + rt.gen("record", **options)
    return parsed(s["record"], schema)


@rt.function
def call(s: rt.ProgramState, item: Item, way: str, temperature: float, seed: int) -> Any:
    menu = "".join(f"- {name}: {text}\n" for name, text in MENU.items())
    s += f"Choose the tool that can handle the request.\n{menu}\nRequest: {item['text']}\nTool:"
    options: dict[str, Any] = {"temperature": temperature, "seed": seed}
    if way == "free":
        s += rt.gen("tool", max_tokens=6, stop="\n", **options)
    else:
        pattern = f" ({'|'.join(MENU)})"
        s += rt.gen("tool", regex=pattern, finish="valid", max_tokens=6, **options)
    name = s["tool"].strip()
    if name not in SLOTS:
        return None
    keys = list(SLOTS[name])
    if not keys:
        return name, {}
    schema = record_schema(keys)
    s += "\n\n" + json_prompt("event", keys, item["text"])
    if way == "free":
        s += rt.gen("arguments", max_tokens=60, stop="\n", **options)
        arguments = parsed(s["arguments"], schema)
    else:
        tool = {"name": name, "parameters": schema}
        s += "\n"
        s += rt.gen("calls", tools=[tool], tool_choice=name, parallel=False, **options)
        arguments = s["calls"][0].arguments
    return None if arguments is None else (name, arguments)


def score(
    backend: rt.Backend,
    program: rt.Function,
    items: list[Item],
    expected: Callable[[Item], Any],
    way: str,
    temperature: float,
) -> Score:
    rows = [
        {"item": item, "way": way, "temperature": temperature, "seed": seed}
        for seed, item in enumerate(items)
    ]
    values = [state.ret_value for state in program.run_batch(rows, backend=backend)]
    valid = sum(value is not None for value in values)
    right = sum(value == expected(item) for value, item in zip(values, items, strict=True))
    return Score(valid / len(items), right / len(items))


def evaluate(backend: rt.Backend, count: int) -> dict[tuple[str, str, float], Score]:
    """(task, way, temperature) → score."""
    records, calls = extraction_items(count), tool_items(count)
    scores: dict[tuple[str, str, float], Score] = {}
    for temperature in (0.0, 1.0, 2.0):
        for way in ("free", "spaced", "compact"):
            scores["JSON", way, temperature] = score(
                backend, extract, records, lambda item: item["record"], way, temperature
            )
        for way in ("free", "constrained"):
            scores["tool call", way, temperature] = score(
                backend,
                call,
                calls,
                lambda item: (item["tool"], item["arguments"]),
                way,
                temperature,
            )
    return scores


def table(scores: dict[tuple[str, str, float], Score]) -> str:
    lines = ["| task | generated | temperature | valid | right |", "|---|---|---|---|---|"]
    for (task, way, temperature), result in scores.items():
        shares = f"{result.valid:.3f} | {result.right:.3f}"
        lines.append(f"| {task} | {way} | {temperature:g} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="a model folder; default: nano")
    parser.add_argument("--count", type=int, default=100)
    arguments = parser.parse_args()
    with rt.Runtime(arguments.folder) as backend:
        scores = evaluate(backend, arguments.count)
    print(table(scores))


if __name__ == "__main__":
    main()
