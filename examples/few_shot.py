"""Few-shot classification of a batch: four subjects, each with a thousand tokens of shots.

Every row sends its subject's shots along. The runtime computes them once a subject; a row costs its
own sentence.
"""

from __future__ import annotations

from typing import Any

from heldout import held_out, runtime, share

import radixrt as rt

SUBJECTS = {
    "sentiment": ("Review", "Sentiment"),
    "topic": ("Headline", "Topic"),
    "emotion": ("Message", "Emotion"),
    "question": ("Question", "Type"),
}


@rt.function
def classify(s, shots, question):
    s += shots
    s += question + rt.gen("label", max_tokens=4, stop="\n", temperature=0)
    return s["label"].strip()


def rows(num_rows: int = 160, num_shots: int = 50) -> list[dict[str, Any]]:
    """Return arguments of ``classify`` with the right ``label``, the subjects taking turns."""
    per_subject = []
    for name, (text, label) in SUBJECTS.items():
        shots = "".join(
            f"{text}: {shot['text']}\n{label}: {shot['label']}\n\n"
            for shot in held_out(f"{name}_shots", num_shots)
        )
        items = held_out(name, num_rows // len(SUBJECTS))
        asked = [(f"{text}: {item['text']}\n{label}:", item["label"]) for item in items]
        per_subject.append([{"shots": shots, "question": q, "label": right} for q, right in asked])
    return [row for turn in zip(*per_subject, strict=True) for row in turn]


def evaluate(backend: rt.Backend, batch: list[dict[str, Any]]) -> tuple[float, list[Any]]:
    """Return the accuracy on ``rows`` and the rows' states."""
    arguments = [{"shots": row["shots"], "question": row["question"]} for row in batch]
    states = classify.run_batch(arguments, backend=backend)
    right = [s.ret_value == row["label"] for s, row in zip(states, batch, strict=True)]
    return share(right), states


if __name__ == "__main__":
    with runtime(__doc__) as backend:
        accuracy, states = evaluate(backend, rows())
        usage = [state.usage() for state in states]
        asked, cached = (sum(u[k] for u in usage) for k in ("prompt_tokens", "cached_tokens"))
        print(states[0].text()[-200:])
        print(f"\naccuracy {accuracy:.3f} on {len(states)} rows")
        print(f"{cached:,} of {asked:,} prompt tokens came from the cache ({cached / asked:.1%})")
