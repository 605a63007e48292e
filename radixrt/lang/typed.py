"""Generations with a Python type: the regex that constrains them and the value they become.

Numbers may be followed by one space or newline, with which a model says that the number is over;
the text ends before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from radixrt.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Typed:
    """A Python type that a generation is constrained to and converted into."""

    name: str
    regex: str
    stop: tuple[str, ...]
    convert: Callable[[str], Any]

    def value(self, text: str) -> Any:
        """Return the value of a generated text; ``InvalidArgument`` when it has none, because the
        generation was cut short."""
        try:
            return self.convert(text)
        except ValueError:
            raise InvalidArgument(
                "dtype", self.name, f"the generated text {text!r} is none; raise max_tokens"
            ) from None


def _to_bool(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(text)
    return text == "True"


def _to_str(text: str) -> str:
    value = orjson.loads(text)
    if not isinstance(value, str):
        raise ValueError(text)
    return value


_TYPES = {
    "int": Typed("int", r"[-+]?[0-9]{1,18}[ \n]?", (" ", "\n"), int),
    "float": Typed("float", r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[ \n]?", (" ", "\n"), float),
    "bool": Typed("bool", r"(True|False)", (), _to_bool),
    "str": Typed("str", r'"([^"\\\x00-\x1f]|\\["\\/bfnrt])*"', (), _to_str),
}


def typed(dtype: type | str) -> Typed:
    """Return how a dtype is generated. Raises ``InvalidArgument`` for other types."""
    found = _TYPES.get(dtype if isinstance(dtype, str) else getattr(dtype, "__name__", ""))
    if found is None or (isinstance(dtype, type) and dtype not in (int, float, bool, str)):
        raise InvalidArgument("dtype", dtype, "use int, float, bool or str")
    return found
