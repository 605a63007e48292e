"""What became of a program's prompt tokens: ``s.explain()`` and ``radixrt explain``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

OUTCOMES: Final = ("device", "host", "disk", "coalesced", "computed", "unreached")
"""Where a prompt token came from: a cache on the device, on the host, in a store (disk or remote);
another request that was computing it; or it was computed. A call that was ended early did not reach
the rest."""

_TOLD: Final = {
    "never_seen": "never seen before",
    "page_tail": "known, but a prompt's last token is always computed",
    "corrupt": "a store had it, and its checksum was wrong",
    "timeout": "a store had it, and did not deliver in time",
    "failed": "a store had it, and could not read it",
    "disabled": "the cache is not used",
}


@dataclass(frozen=True, slots=True)
class Miss:
    """The prompt tokens ``[start, end)`` were not served from any cache, for one ``cause``.

    ``details`` belong to the cause: of an eviction ``tier``, ``ago_s`` and ``for``; of a divergence
    the text ``before`` it, ``ours`` and ``theirs``; of a namespace its ``field``; of what was not
    worth loading ``predicted_ms``.
    """

    start: int
    end: int
    cause: str
    details: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.end - self.start:>7} tokens from {self.start}: {self._reason()}"

    def _reason(self) -> str:
        d = self.details
        match self.cause:
            case "diverged":
                return (
                    f"diverged at token {self.start}: after {_quoted(d['before'], last=True)} "
                    f"came {_quoted(d['ours'])}, cached was {_quoted(d['theirs'])}"
                )
            case "evicted":
                return f"evicted from {d['tier']} {d['ago_s']:.1f} s before, for {d['for']}"
            case "namespace":
                return f"cached where this call may not look: its {d['field']} sets it apart"
            case "not_worth":
                return f"not worth loading, which would have taken {d['predicted_ms']:.1f} ms"
        return _TOLD.get(self.cause, self.cause)


@dataclass(frozen=True, slots=True)
class CallExplanation:
    """One output of one call. ``outcomes`` maps each of ``OUTCOMES`` to its tokens; they sum to
    ``prompt_tokens``, and the ``misses`` to what was not served."""

    op: str
    call: int
    output: int
    prompt_tokens: int
    outcomes: Mapping[str, int]
    misses: tuple[Miss, ...]

    def __str__(self) -> str:
        served = ", ".join(f"{self.outcomes[o]} {o}" for o in OUTCOMES if self.outcomes[o])
        output = f", output {self.output}" if self.output else ""
        head = f"{self.op} (call {self.call}{output}): {self.prompt_tokens} prompt tokens: {served}"
        return "\n".join([head, *map(str, self.misses)])


@dataclass(frozen=True, slots=True)
class Explanation:
    """The latest calls, oldest first. ``print`` it, or read ``calls``."""

    calls: tuple[CallExplanation, ...]

    @property
    def outcomes(self) -> dict[str, int]:
        """Tokens of all calls by outcome."""
        return {o: sum(call.outcomes[o] for call in self.calls) for o in OUTCOMES}

    @property
    def causes(self) -> dict[str, int]:
        """Tokens of all misses by cause."""
        causes: dict[str, int] = {}
        for call in self.calls:
            for miss in call.misses:
                causes[miss.cause] = causes.get(miss.cause, 0) + miss.end - miss.start
        return causes

    def __str__(self) -> str:
        return "\n".join(map(str, self.calls)) or "no calls yet"


def explanation(calls: Sequence[Mapping[str, Any]]) -> Explanation:
    """Return the explanation in the answer to ``protocol.Explain``."""
    return Explanation(tuple(_call(call) for call in calls))


def _call(data: Mapping[str, Any]) -> CallExplanation:
    own = ("start", "end", "cause")
    misses = tuple(
        Miss(
            miss["start"],
            miss["end"],
            miss["cause"],
            {key: value for key, value in miss.items() if key not in own},
        )
        for miss in data["misses"]
    )
    return CallExplanation(
        data["op"],
        data["call"],
        data["output"],
        data["prompt_tokens"],
        {outcome: data["outcomes"][outcome] for outcome in OUTCOMES},
        misses,
    )


def _quoted(text: str, *, last: bool = False, width: int = 40) -> str:
    if len(text) > width:
        text = "…" + text[-width:] if last else text[:width] + "…"
    return repr(text)
