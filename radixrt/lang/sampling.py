"""Sampling options as a program writes them, and how they become the protocol's ``Sampling``.

Every option may be left out (None). ``run`` and ``run_batch`` give defaults for a whole program;
what a ``gen`` gives itself wins. Values are checked and copied when they are given, so a list that
is changed afterwards changes nothing and is never changed by us.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from radixrt.errors import InvalidArgument
from radixrt.protocol import Sampling


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Checked sampling options; None means not given."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    stop: tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    stop_regex: tuple[str, ...] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    return_text_in_logprobs: bool | None = None

    def over(self, defaults: SamplingOptions) -> SamplingOptions:
        """Return these options, with ``defaults`` where they say nothing."""
        return SamplingOptions(
            **{
                name: own if (own := getattr(self, name)) is not None else getattr(defaults, name)
                for name in _NAMES
            }
        )

    def resolve(self) -> Sampling:
        """Return the protocol's form, its defaults filled in.

        Raises ``InvalidArgument`` for options that exclude each other.
        """
        given = {
            name: value
            for name in _NAMES
            if name != "return_text_in_logprobs" and (value := getattr(self, name)) is not None
        }
        sampling = Sampling(**given)
        if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
            raise InvalidArgument(
                "min_tokens",
                sampling.min_tokens,
                f"use at most max_tokens={sampling.max_tokens}",
            )
        if sampling.top_logprobs_num and not sampling.return_logprob:
            raise InvalidArgument(
                "top_logprobs_num", sampling.top_logprobs_num, "add return_logprob=True"
            )
        return sampling


_NAMES = tuple(field.name for field in fields(SamplingOptions))

SAMPLING_NAMES = frozenset((*_NAMES, "max_new_tokens", "min_new_tokens"))
"""Keywords that ``run`` takes as sampling options, SGLang's two other names included."""


def sampling_options(**given: Any) -> SamplingOptions:
    """Return checked options. Raises ``InvalidArgument`` naming the argument and the way out."""
    for alias, name in (("max_new_tokens", "max_tokens"), ("min_new_tokens", "min_tokens")):
        if (value := given.pop(alias, None)) is not None:
            if given.get(name) is not None:
                raise InvalidArgument(alias, value, f"give either {alias} or {name}, not both")
            given[name] = value
    checked = {
        name: _CHECKS[name](name, value) for name, value in given.items() if value is not None
    }
    return SamplingOptions(**checked)


def strings(argument: str, value: object) -> tuple[str, ...]:
    """Return a string, or several, as a tuple of non-empty strings."""
    items = (value,) if isinstance(value, str) else _items(argument, value, "a string or a list")
    for item in items:
        if not isinstance(item, str):
            raise InvalidArgument(argument, value, "use a string or a list of strings")
        if not item:
            raise InvalidArgument(argument, value, "leave the empty string out")
        check_text(argument, item)
    return items


def check_text(argument: str, text: str) -> str:
    """Return ``text``; ``InvalidArgument`` when it is none: half a surrogate pair has no bytes."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(argument, text, "it holds half a surrogate pair") from None
    return text


def _items(argument: str, value: object, expected: str) -> tuple[Any, ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidArgument(argument, value, f"use {expected}")
    return tuple(value)


def _whole(lowest: int) -> Any:
    def check(argument: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidArgument(argument, value, "use a whole number")
        if not lowest <= value < 2**63:
            raise InvalidArgument(argument, value, f"use {lowest} or more")
        return value

    return check


def _number(lowest: float, highest: float, *, above: bool = False) -> Any:
    interval = f"{'(' if above else '['}{lowest:g}, {highest:g}]"

    def check(argument: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise InvalidArgument(argument, value, "use a number")
        if not (lowest < value if above else lowest <= value) or value > highest:
            raise InvalidArgument(argument, value, f"use a number in {interval}")
        return float(value)

    return check


def _flag(argument: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(argument, value, "use True or False")
    return value


def _top_k(argument: str, value: object) -> int:
    count: int = _whole(-1)(argument, value)
    return max(count, 0)


def _token_ids(argument: str, value: object) -> tuple[int, ...]:
    items = _items(argument, value, "a list of token ids")
    return tuple(_whole(0)(argument, item) for item in items)


def _logit_bias(argument: str, value: object) -> tuple[tuple[int, float], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    try:
        bias = tuple((int(token), float(amount)) for token, amount in pairs)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise InvalidArgument(argument, value, "use {token id: number}") from None
    if any(token < 0 or not math.isfinite(amount) for token, amount in bias):
        raise InvalidArgument(argument, value, "use token ids from 0 and finite numbers")
    return bias


_CHECKS: dict[str, Any] = {
    "max_tokens": _whole(1),
    "min_tokens": _whole(0),
    "n": _whole(1),
    "stop": strings,
    "stop_token_ids": _token_ids,
    "stop_regex": strings,
    "temperature": _number(0.0, 100.0),
    "top_p": _number(0.0, 1.0, above=True),
    "top_k": _top_k,
    "min_p": _number(0.0, 1.0),
    "frequency_penalty": _number(-2.0, 2.0),
    "presence_penalty": _number(-2.0, 2.0),
    "repetition_penalty": _number(0.0, 100.0, above=True),
    "logit_bias": _logit_bias,
    "seed": _whole(0),
    "ignore_eos": _flag,
    "return_logprob": _flag,
    "logprob_start_len": _whole(-1),
    "top_logprobs_num": _whole(0),
    "return_text_in_logprobs": _flag,
}
