"""The last word on a JSON value: the ``jsonschema`` package, kept within bounds.

Patterns are matched with a time limit, references are never fetched, and a validation ends with an
error after ``MAX_STEPS`` keywords: a schema can ask for exponential work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jsonschema
import referencing
import regex
from jsonschema_specifications import REGISTRY

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.json_text import Located, Path, locate, pointer

MAX_STEPS = 50_000
"""Keywords that one validation may evaluate."""

PATTERN_TIMEOUT_S = 0.05
"""Seconds that one match of a pattern may take."""


class Failure(NamedTuple):
    """The first value, in the order of the text, that is not valid: ``[start, end)`` characters."""

    path: Path
    start: int
    end: int
    message: str


class FinalValidator:
    """Checks finished texts against a schema. Safe for use from several threads."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._class = _bounded(jsonschema.validators.validator_for(schema, _NEWEST))

    def check(self, text: str) -> Failure | None:
        """Return what is wrong with a JSON text, None when it is valid.

        Raises ``GrammarError`` when the validation cannot be carried out.
        """
        try:
            located = locate(text)
        except (ValueError, RecursionError, IndexError) as error:
            return Failure((), 0, len(text), f"no JSON: {error}")
        return self.check_located(located, len(text))

    def check_located(self, located: Located, length: int) -> Failure | None:
        """As ``check``, of a text that was parsed already."""
        first: Failure | None = None
        for path, message in self._errors(located.value):
            start, end = located.spans.get(path, (0, length))
            if first is None or (start, -end) < (first.start, -first.end):
                first = Failure(path, start, end, f"{pointer(path) or 'the value'}: {message}")
        return first

    def is_valid(self, value: Any) -> bool:
        """Whether a value is valid; raises as ``check`` does."""
        return next(iter(self._errors(value)), None) is None

    def _errors(self, value: Any) -> Iterator[tuple[Path, str]]:
        validator = self._class(self._schema, registry=REGISTRY, format_checker=_Budget())
        try:
            for error in validator.iter_errors(value):
                yield tuple(error.absolute_path), error.message[:200]
        except GrammarError:
            raise
        except referencing.exceptions.Unresolvable as error:
            raise GrammarError(f"json_schema: a reference leads nowhere: {error}") from None
        except (RecursionError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise GrammarError(f"json_schema: it cannot be used to validate: {error!r}") from None


class _Budget(jsonschema.FormatChecker):  # type: ignore[misc]
    """How many keywords may still be evaluated. It travels as the format checker because that is
    what a validator hands on to the validators of its parts; formats are not asserted."""

    def __init__(self) -> None:
        super().__init__(formats=())
        self._left = MAX_STEPS

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise GrammarError(f"json_schema: its validation takes over {MAX_STEPS} steps")


Check = Callable[[Any, Any, Any, Any], Iterator[Any] | None]

_NEWEST = jsonschema.Draft202012Validator


@functools.lru_cache(maxsize=16)
def _bounded(validator_class: Any) -> Any:
    """Return a validator class with bounded checks."""
    checks = {name: _counted(check) for name, check in validator_class.VALIDATORS.items()}
    checks["pattern"] = _counted(_check_pattern)
    checks["format"] = _counted(_no_check)
    if "patternProperties" in checks:
        checks["patternProperties"] = _counted(_check_pattern_properties)
    if "additionalProperties" in checks:
        checks["additionalProperties"] = _counted(_check_additional)
    return jsonschema.validators.extend(validator_class, checks)


def _counted(check: Check) -> Check:
    def run(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        validator.format_checker.spend()
        yield from check(validator, value, instance, schema) or ()

    return run


def _no_check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
    return iter(())


def _check_pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if isinstance(instance, str) and not _search(pattern, instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _check_pattern_properties(
    validator: Any, patterns: Any, instance: Any, schema: Any
) -> Iterator[Any]:
    if isinstance(instance, dict):
        for pattern, inner in patterns.items():
            for name, value in instance.items():
                if _search(pattern, name):
                    yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _check_additional(validator: Any, inner: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    properties = schema.get("properties", {})
    patterns = schema.get("patternProperties", {})
    extra = [
        name
        for name in instance
        if name not in properties and not any(_search(pattern, name) for pattern in patterns)
    ]
    if isinstance(inner, dict):
        for name in extra:
            yield from validator.descend(instance[name], inner, path=name)
    elif inner is False and extra:
        yield jsonschema.ValidationError(f"properties {extra!r} are not expected")


@functools.lru_cache(maxsize=1024)
def _compile(pattern: str) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise GrammarError(f"json_schema: not a pattern: {pattern[:80]!r}: {error}") from None


def _search(pattern: str, text: str) -> bool:
    try:
        return (
            _compile(pattern).search(text, timeout=PATTERN_TIMEOUT_S, concurrent=True) is not None
        )
    except TimeoutError:
        raise GrammarError(
            f"json_schema: matching {pattern[:80]!r} takes over {PATTERN_TIMEOUT_S} s"
        ) from None
