"""A router: ``select`` scores all departments at once and takes the likeliest.

However many options there are, it is one message, and what they share is computed once.
"""

from __future__ import annotations

from typing import Any

from heldout import held_out, runtime, share

import radixrt as rt


@rt.function
def route(s, header, role, options, request):
    s += f"{header}Request: {request}\n{role}:"
    s += rt.select("choice", [f" {option}" for option in options])
    return s["choice"].strip()


def evaluate(backend: rt.Backend, count: int = 40) -> tuple[float, list[Any]]:
    items = held_out("routing", count)
    names = ("header", "role", "options", "request")
    batch = [{name: item[name] for name in names} for item in items]
    states = route.run_batch(batch, backend=backend)
    right = [s.ret_value == item["label"] for s, item in zip(states, items, strict=True)]
    return share(right), states


if __name__ == "__main__":
    with runtime(__doc__) as backend:
        accuracy, states = evaluate(backend)
        for state in states[:3]:
            print(state.text(), "\n")
        print(f"{accuracy:.3f} of {len(states)} requests went where they belong")
