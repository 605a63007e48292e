"""Writes the held-out sets, and shots from the training side to go with them, as JSON lines.

python -m tools.nano.heldout radixrt/models/nano/heldout
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

from tools.nano import arithmetic, chat, classify, extract, puzzle, react, route

SEED = 7
CLASSES = {
    "sentiment": ["positive", "negative"],
    "topic": ["sports", "weather", "eating", "music", "travel"],
    "emotion": ["joy", "anger", "fear", "sadness"],
    "question": ["person", "location", "time", "number"],
}


def held_out_sets(count: int) -> dict[str, list[dict[str, object]]]:
    """Name of the set → its items. Each set has a generator of its own, so sets do not interact."""

    def rng(name: str) -> random.Random:
        return random.Random(f"{SEED} {name}")

    sets: dict[str, list[dict[str, object]]] = {}
    for domain, classes in CLASSES.items():
        sets[domain] = [*classify.items(rng(domain), domain, classes, count, held_out=True)]
        sets[f"{domain}_shots"] = [
            *classify.items(rng(domain + " shots"), domain, classes, 60, held_out=False)
        ]
    sets["arithmetic"] = arithmetic.items(rng("arithmetic"), count)
    sets["word_problems"] = react.items(rng("word problems"), count)
    examples = rng("word problem shots")
    sets["word_problem_shots"] = [{"text": react.worked_example(examples)} for _ in range(8)]
    sets["extraction"] = extract.items(rng("extraction"), count)
    sets["chat"] = chat.items(rng("chat"), count)
    sets["routing"] = route.items(rng("routing"), count)
    sets["puzzles"] = puzzle.items(rng("puzzles"), count)
    return sets


def write_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in held_out_sets(args.count).items():
        write_lines(args.folder / f"{name}.jsonl", rows)
        print(f"{name}: {len(rows)}")


if __name__ == "__main__":
    main()
