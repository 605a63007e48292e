"""Requirements of the package's metadata, and whether a version meets one."""

from __future__ import annotations

import re
from dataclasses import dataclass

_REQUIREMENT = re.compile(
    r"^\s*(?P<name>[A-Za-z0-9._-]+)\s*(\[[^\]]*\])?\s*\(?(?P<bounds>[^;)]*)\)?\s*(;(?P<marker>.*))?$"
)
_EXTRA = re.compile(r"extra\s*==\s*['\"]([A-Za-z0-9_-]+)['\"]")
_BOUND = re.compile(r"^(>=|<=|==|!=|<|>|~=)\s*([0-9][0-9A-Za-z.+*-]*)$")


@dataclass(frozen=True, slots=True)
class Requirement:
    """A distribution and the versions that are right. ``extra``: of which of our extras it is part,
    empty for what is always needed."""

    name: str
    bounds: tuple[tuple[str, str], ...]
    extra: str = ""

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Return the requirement of a line such as ``torch<2.14,>=2.11; extra == "runtime"``."""
        found = _REQUIREMENT.match(text)
        if found is None:
            raise ValueError(f"not a requirement: {text!r}")
        extra = _EXTRA.search(found["marker"] or "")
        return cls(found["name"].lower(), _bounds(found["bounds"]), extra[1] if extra else "")

    def allows(self, version: str) -> bool:
        """Whether a version is within the bounds; what follows its numbers does not count."""
        numbers = _numbers(version)
        return all(_meets(numbers, sign, bound) for sign, bound in self.bounds)

    @property
    def range(self) -> str:
        """The bounds in words of pip: ``>=2.11,<2.14``."""
        return ",".join(sign + bound for sign, bound in sorted(self.bounds, reverse=True))

    def __str__(self) -> str:
        return self.name + self.range


def _bounds(text: str) -> tuple[tuple[str, str], ...]:
    bounds = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _BOUND.match(part)
        if found is None:
            raise ValueError(f"not a bound of a version: {part!r}")
        bounds.append((found[1], found[2]))
    return tuple(bounds)


def _meets(numbers: tuple[int, ...], sign: str, bound: str) -> bool:
    wanted = _numbers(bound)
    width = max(len(numbers), len(wanted))
    have, limit = _padded(numbers, width), _padded(wanted, width)
    match sign:
        case ">=":
            return have >= limit
        case "<=":
            return have <= limit
        case ">":
            return have > limit
        case "<":
            return have < limit
        case "!=":
            return have != limit
        case "~=":
            return have >= limit and numbers[: len(wanted) - 1] == wanted[:-1]
        case _:
            return have == limit


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else (0,)


def _padded(numbers: tuple[int, ...], width: int) -> tuple[int, ...]:
    return numbers + (0,) * (width - len(numbers))
