"""Choosing one of several implementations, and saying why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from radixrt.errors import ConfigError

Chosen = TypeVar("Chosen")

log = logging.getLogger(__name__)


def choose(
    option: str, name: str, candidates: Sequence[str], load: Callable[[str], Chosen]
) -> tuple[Chosen, str]:
    """Return what ``load`` makes of ``name``, or for "auto" of the first of ``candidates`` (best
    first) that it can make, and why that one.

    A candidate that is passed over is a logged warning. Raises the ``ConfigError`` of ``load`` for
    a name that was asked for, and for the last candidate.
    """
    if name != "auto":
        return load(name), f"asked for by {option}={name}"
    passed: list[str] = []
    for candidate in candidates:
        try:
            chosen = load(candidate)
        except ConfigError as error:
            if candidate == candidates[-1]:
                raise
            log.warning("%s; trying the next one", error)
            passed.append(str(error))
        else:
            return chosen, "; ".join(passed) if passed else "the default of this device"
    raise ConfigError(f"{option}=auto: nothing serves this device")
