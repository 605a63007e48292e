"""What a generated text becomes: an instance of a type, or the calls of tools.

A ``Reading`` turns an output into a value. Where the schema says all that the type demands, reading
cannot fail and the value is read when it is asked for. Where code of the type's own has a say
(validators, ``__post_init__``), ``needs_check`` is set: then the output is read as soon as it is
there, and generated again when it is refused (``radixrt.lang.checked``).
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from radixrt.errors import ValueRefused
from radixrt.lang.form import Form
from radixrt.lang.forms import FormBuilder
from radixrt.protocol import Output


class Reading(Protocol):
    """How the outputs of a generation are read."""

    @property
    def needs_check(self) -> bool:
        """Whether an output that satisfies the constraint may be refused all the same."""

    def value(self, output: Output) -> Any:
        """Return the value; raises ``ValueRefused`` when there is none."""


@dataclass(frozen=True, slots=True)
class ResultType:
    """A Python type as a constraint. ``schema`` is the text of its JSON schema."""

    type: Any
    schema: str
    form: Form
    is_exact: bool

    def read(self, text: str) -> Any:
        """Return the instance that JSON text stands for; raises ``ValueRefused``."""
        try:
            if self.form.read_text is not None:
                return self.form.read_text(text)
            return self.form.read(json.loads(text))
        except (ValueError, TypeError) as error:
            raise ValueRefused(f"{_name(self.type)} refuses {_shorten(text)}: {error}") from error

    def read_parsed(self, value: Any) -> Any:
        """``read`` for JSON that is parsed."""
        try:
            return self.form.read(value)
        except (ValueError, TypeError) as error:
            shown = _shorten(json.dumps(value, ensure_ascii=False))
            raise ValueRefused(f"{_name(self.type)} refuses {shown}: {error}") from error


@dataclass(frozen=True, slots=True)
class TypeReading:
    """An instance of a type, written after the text ``after`` if there is one."""

    result: ResultType
    after: str = ""

    @property
    def needs_check(self) -> bool:
        return not self.result.is_exact

    def value(self, output: Output) -> Any:
        return self.result.read(split_reasoning(output.text, self.after)[1])


def split_reasoning(text: str, after: str) -> tuple[str, str]:
    """Return what is before the marker ``after``, with it, and what follows; without a marker in
    the text nothing is before."""
    if not after or after not in text:
        return "", text
    before, _, rest = text.partition(after)
    return before + after, rest


def result_type(tp: Any) -> ResultType:
    """Return how a type is generated and read. Raises ``InvalidArgument`` when it cannot be."""
    try:
        return _known_type(tp, str(tp))
    except TypeError:  # not hashable: a note in an Annotated
        return _new_type(tp)


@functools.lru_cache(maxsize=512)
def _known_type(tp: Any, written: str) -> ResultType:
    return _new_type(tp)


def _new_type(tp: Any) -> ResultType:
    builder = FormBuilder()
    form = builder.form(tp)
    schema = dict(form.schema)
    definitions = dict(builder.definitions)
    if "$ref" in schema:
        # The value itself is no reference: what is at its top is what engines look at first.
        name = schema["$ref"].rpartition("/")[2]
        schema = dict(definitions[name])
        if f'"#/$defs/{name}"' not in orjson.dumps(definitions).decode():
            del definitions[name]
    if definitions:
        schema["$defs"] = definitions
    return ResultType(tp, orjson.dumps(schema).decode(), form, builder.is_exact)


def _name(tp: Any) -> str:
    return getattr(tp, "__name__", None) or str(tp)


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
