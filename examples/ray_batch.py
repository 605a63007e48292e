"""The few-shot evaluation over Ray Data: rows are spread over a cluster, with one runtime a node.

    pip install 'ray[data]'
    python examples/ray_batch.py                            # each node starts a runtime of its own
    python examples/ray_batch.py --endpoint ipc:///tmp/radixrt/main.sock   # or uses its server

A worker takes a node's processors for itself, so there is one a node. Rows are sorted by their
shots: a block holds rows of one subject, and a node computes few subjects' shots.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import few_shot
import ray

import radixrt as rt


class Classifier:
    """A node's runtime, and the batches that come to it."""

    def __init__(self, endpoint: str | None) -> None:
        self.backend = rt.connect(endpoint) if endpoint else rt.Runtime()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [
            {"shots": shots, "question": question}
            for shots, question in zip(batch["shots"], batch["question"], strict=True)
        ]
        states = few_shot.classify.run_batch(rows, backend=self.backend)
        usage = [state.usage() for state in states]
        return {
            "answer": [state.ret_value for state in states],
            "label": batch["label"],
            "prompt_tokens": [counts["prompt_tokens"] for counts in usage],
            "cached_tokens": [counts["cached_tokens"] for counts in usage],
        }


def evaluate(endpoint: str | None, num_rows: int) -> list[dict[str, Any]]:
    """Return a row of answer, label and token counts for each of ``few_shot.rows``."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    num_cpus = min(node["Resources"]["CPU"] for node in nodes)
    rows = sorted(few_shot.rows(num_rows), key=lambda row: row["shots"])
    answers = ray.data.from_items(rows, override_num_blocks=2 * len(nodes)).map_batches(
        Classifier,
        fn_constructor_args=(endpoint,),
        batch_size=max(num_rows // (2 * len(nodes)), 1),
        compute=ray.data.ActorPoolStrategy(size=len(nodes)),
        # Reading the rows needs the rest of a processor.
        num_cpus=max(num_cpus - 0.5, 0.5),
        scheduling_strategy="SPREAD",
    )
    return answers.take_all()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", help="of the `radixrt serve` that runs on every node")
    parser.add_argument("--address", help="of a Ray cluster; without it one is started here")
    parser.add_argument("--rows", type=int, default=160)
    given = parser.parse_args()
    # The examples' modules go with the program; radixrt itself is installed on every node.
    ray.init(given.address, runtime_env={"working_dir": str(Path(__file__).parent)})
    answers = evaluate(given.endpoint, given.rows)
    right = sum(row["answer"] == row["label"] for row in answers)
    prompt, cached = (
        sum(row[f"{kind}_tokens"] for row in answers) for kind in ("prompt", "cached")
    )
    print(f"accuracy {right / len(answers):.3f} on {len(answers)} rows")
    print(f"{cached:,} of {prompt:,} prompt tokens came from the cache ({cached / prompt:.1%})")
