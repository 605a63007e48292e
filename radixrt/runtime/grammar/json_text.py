"""Where the values of a JSON text are."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

Path = tuple[str | int, ...]

MAX_DEPTH = 200
"""Levels of nesting that are followed."""

_BLANKS = " \t\n\r"


class Located(NamedTuple):
    """A value and where it and its parts are: ``spans[path]`` is ``[start, end)`` in characters;
    ``scalars`` are the paths of strings, numbers, booleans and nulls, in order."""

    value: object
    spans: dict[Path, tuple[int, int]]
    scalars: list[Path]


def locate(text: str) -> Located:
    """Parse a JSON text. Raises ``ValueError`` for anything that is not one JSON value."""
    value = json.loads(text)
    located = Located(value, {}, [])
    end = _walk(text, _skip(text, 0), (), located)
    if _skip(text, end) != len(text):
        raise ValueError("more than one value")
    return located


def pointer(path: Path) -> str:
    """Return the JSON pointer of a path."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in path)


def resolve(root: Any, reference: Any) -> Any:
    """Return the part of ``root`` that a reference within it names; None where it names none."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    node = root
    for key in reference[1:].split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, dict) or key not in node:
            return None
        node = node[key]
    return node


def matches(pattern: str, path: Path) -> bool:
    """Whether a JSON pointer with ``*`` for any key or item names ``path``."""
    keys = pattern.split("/")[1:]
    return len(keys) == len(path) and all(
        key == "*" or key.replace("~1", "/").replace("~0", "~") == str(part)
        for key, part in zip(keys, path, strict=True)
    )


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    return at


def _walk(text: str, start: int, path: Path, located: Located) -> int:
    """Note the value that begins at ``start`` and return where it ends; the text is valid."""
    if len(path) > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels")
    opening = text[start]
    if opening == "{":
        end = _walk_object(text, start, path, located)
    elif opening == "[":
        end = _walk_array(text, start, path, located)
    else:
        if opening == '"':
            end = _string_end(text, start)
        else:
            end = start
            while end < len(text) and text[end] not in ",]} \t\n\r":
                end += 1
        located.scalars.append(path)
    located.spans[path] = (start, end)
    return end


def _string_end(text: str, start: int) -> int:
    at = start + 1
    while text[at] != '"':
        at += 2 if text[at] == "\\" else 1
    return at + 1


def _walk_object(text: str, start: int, path: Path, located: Located) -> int:
    at = _skip(text, start + 1)
    while text[at] != "}":
        end = _string_end(text, at)
        key = json.loads(text[at:end])
        at = _skip(text, _skip(text, end) + 1)  # past the colon
        at = _skip(text, _walk(text, at, (*path, key), located))
        if text[at] == ",":
            at = _skip(text, at + 1)
    return at + 1


def _walk_array(text: str, start: int, path: Path, located: Located) -> int:
    at, index = _skip(text, start + 1), 0
    while text[at] != "]":
        at = _skip(text, _walk(text, at, (*path, index), located))
        index += 1
        if text[at] == ",":
            at = _skip(text, at + 1)
    return at + 1
