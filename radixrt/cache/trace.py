"""Request traces: who asked for which prefix when, as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from radixrt.errors import InvalidArgument

BLOCK_TOKENS = 512
"""Tokens of a block when a trace does not say otherwise."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace, or the end of a program (no blocks).

    ``blocks``     chained blocks of tokens: equal ids mean an equal prefix up to there
    ``num_tokens`` of the prompt; the last block may be partly filled
    ``program``    whose it is; None: nothing is known of programs
    ``pause_s``    what was expected, when it ended, of the time until the program's next request
    ``is_end``     the program ends here
    """

    time_s: float
    blocks: tuple[int, ...]
    num_tokens: int
    program: int | None = None
    pause_s: float | None = None
    is_end: bool = False


def read_trace(path: Path) -> list[TraceRequest]:
    """Return the requests of a trace file, in order of time.

    A line has ``timestamp`` (ms), ``input_length`` (tokens) and ``hash_ids``, as the traces that
    Mooncake published; ours add ``program``, ``pause_s`` and ``end``. Raises ``InvalidArgument``.
    """
    requests = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
                requests.append(
                    TraceRequest(
                        float(fields["timestamp"]) / 1000,
                        tuple(int(block) for block in fields.get("hash_ids", ())),
                        int(fields.get("input_length", 0)),
                        fields.get("program"),
                        fields.get("pause_s"),
                        bool(fields.get("end", False)),
                    )
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InvalidArgument(
                    "trace",
                    f"{path.name}, line {number}",
                    f"a line is a JSON object with timestamp, input_length, hash_ids: {error!r}",
                ) from None
    return sorted(requests, key=lambda request: request.time_s)


def write_trace(path: Path, requests: Iterable[TraceRequest]) -> int:
    """Write requests as lines that ``read_trace`` reads; return how many."""
    lines = [json.dumps(_fields(request)) + "\n" for request in requests]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def shuffled_hints(requests: Iterable[TraceRequest], seed: int) -> Iterator[TraceRequest]:
    """Yield the requests with the hints of others: pauses and ends are those of random programs."""
    import random

    rng = random.Random(seed)
    known = list(requests)
    pauses = [request.pause_s for request in known if request.blocks]
    programs = sorted({r.program for r in known if r.program is not None})
    others = programs[:]
    rng.shuffle(pauses)
    rng.shuffle(others)
    instead = dict(zip(programs, others, strict=True))
    for request in known:
        if request.is_end and request.program is not None:
            program: int | None = instead[request.program]
            yield TraceRequest(request.time_s, (), 0, program, None, is_end=True)
        else:
            yield TraceRequest(
                request.time_s,
                request.blocks,
                request.num_tokens,
                request.program,
                pauses.pop(),
            )


def _fields(request: TraceRequest) -> dict[str, object]:
    fields: dict[str, object] = {"timestamp": round(1000 * request.time_s)}
    if request.blocks:
        fields |= {"input_length": request.num_tokens, "hash_ids": list(request.blocks)}
    if request.program is not None:
        fields["program"] = request.program
    if request.pause_s is not None:
        fields["pause_s"] = round(request.pause_s, 3)
    if request.is_end:
        fields["end"] = True
    return fields
