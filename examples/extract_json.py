"""Extraction to JSON: the schema says what may be written, so the answer always parses."""

from __future__ import annotations

import json
from typing import Any

from heldout import held_out, runtime, share

import radixrt as rt

INTEGERS = {"age", "guests", "price", "quantity"}


def schema(keys: list[str]) -> dict[str, Any]:
    """Return the JSON schema of an object with ``keys``, in this order; what is unknown is null."""
    types = {key: "integer" if key in INTEGERS else "string" for key in keys}
    return {
        "type": "object",
        "properties": {key: {"type": [kind, "null"]} for key, kind in types.items()},
        "required": keys,
        "additionalProperties": False,
    }


@rt.function
def extract(s, kind, keys, text):
    s += f"Extract the {kind} as JSON with the keys {', '.join(keys)}.\nText: {text}\nJSON:"
    s += rt.gen("record", max_tokens=120, temperature=0, json_schema=schema(keys), spaced=True)
    return json.loads(s["record"])


def evaluate(backend: rt.Backend, count: int = 40) -> tuple[float, list[Any]]:
    items = held_out("extraction", count)
    batch = [{name: item[name] for name in ("kind", "keys", "text")} for item in items]
    states = extract.run_batch(batch, backend=backend)
    right = [s.ret_value == item["record"] for s, item in zip(states, items, strict=True)]
    return share(right), states


if __name__ == "__main__":
    with runtime(__doc__) as backend:
        accuracy, states = evaluate(backend)
        for state in states[:3]:
            print(state.text(), "\n")
        print(f"{accuracy:.3f} of {len(states)} records are right")
