"""What is wrong with a constraint, in our words where the engine has its own."""

from __future__ import annotations

import re

_REASON = re.compile(r"^error: (.+)$", re.MULTILINE)
_PLACE = re.compile(r"^(?:at )?(\d+)\((\d+)\): (.+?)(?: \(at .*)?$", re.MULTILINE)
_SHOWN = 60
_MOST = 300

_WAYS_OUT = {
    "regex": "the syntax is that of Rust's regex crate, without look-around and back references",
    "json_schema": "change that part of the schema, or leave it out",
}


def refusal(kind: str, text: str, message: str) -> str:
    """Return why the constraint ``text`` of a ``kind`` cannot be used: argument, value, reason, way
    out. ``message`` is the engine's."""
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    reason, place = _REASON.search(message), _PLACE.search(message)
    if reason is not None:
        why = reason[1]
    elif place is not None and kind == "grammar":
        why = f"line {place[1]}, column {place[2]}: {place[3]}"
    else:  # a line of a grammar that was made of the constraint would mislead
        why = place[3] if place is not None else message.partition("\n")[0]
    way_out = _WAYS_OUT.get(kind, "change that place, or simplify the constraint")
    return f"{kind}={shown!r}: {why[:_MOST]}; {way_out}"
