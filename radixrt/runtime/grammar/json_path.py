"""Where a growing JSON text is: the path of the value that is being written."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass, field

from radixrt.runtime.grammar.json_text import MAX_DEPTH, Path


@dataclass(slots=True)
class Level:
    """An open object or array; ``key`` is the key or index of its current value."""

    is_array: bool
    key: str | int | None = None
    is_key_next: bool = True


@dataclass(slots=True)
class JsonPath:
    """Reads JSON text byte by byte; the text is valid as far as it goes.

    ``length`` counts the characters of the string that is being written; ``escape`` is the number
    of characters that an escape in it still takes (1 after the backslash).
    """

    levels: list[Level] = field(default_factory=list)
    in_string: bool = False
    is_key: bool = False
    in_scalar: bool = False
    length: int = 0
    escape: int = 0
    _key: bytearray = field(default_factory=bytearray)

    @property
    def path(self) -> Path:
        """The path of the value that is being written or comes next."""
        return tuple(level.key for level in self.levels if level.key is not None)

    @property
    def at_value(self) -> bool:
        """Whether a value is being written or comes next, not a key and not what is between."""
        if self.in_string:
            return not self.is_key
        if self.in_scalar or not self.levels:
            return True
        level = self.levels[-1]
        return level.is_array or not level.is_key_next

    def state(self) -> tuple[Hashable, ...]:
        """Return what is equal for readers that go on alike."""
        return (
            *((level.is_array, level.key, level.is_key_next) for level in self.levels),
            (self.in_string, self.is_key, self.in_scalar),
            (self.length, self.escape, bytes(self._key)) if self.in_string else None,
        )

    def feed(self, text: bytes) -> None:
        """Read on."""
        for byte in text:
            if self.in_string:
                self._feed_string(byte)
            else:
                self._feed_plain(byte)

    def copy(self) -> JsonPath:
        """Return an independent reader at the same place."""
        levels = [Level(level.is_array, level.key, level.is_key_next) for level in self.levels]
        return JsonPath(
            levels,
            self.in_string,
            self.is_key,
            self.in_scalar,
            self.length,
            self.escape,
            bytearray(self._key),
        )

    def _feed_string(self, byte: int) -> None:
        if self.is_key:
            self._key.append(byte)
        if self.escape:
            if self.escape == 1 and byte == 0x75:  # \uXXXX
                self.escape = 5
            self.escape -= 1
            return
        if byte == 0x5C:
            self.escape = 1
            self.length += 1
        elif byte == 0x22:
            self.in_string = False
            if self.is_key:
                key = json.loads(b'"' + bytes(self._key), strict=False)
                self.levels[-1].key = key
                self._key.clear()
        elif byte & 0xC0 != 0x80:
            self.length += 1

    def _feed_plain(self, byte: int) -> None:
        level = self.levels[-1] if self.levels else None
        if byte == 0x22:
            self.in_string, self.length = True, 0
            self.is_key = level is not None and not level.is_array and level.is_key_next
        elif byte in b"{[" and len(self.levels) < MAX_DEPTH:
            is_array = byte == 0x5B
            self.levels.append(Level(is_array, 0 if is_array else None))
        elif byte in b"}]" and level is not None:
            self.in_scalar = False
            self.levels.pop()
        elif byte == 0x3A and level is not None:
            level.is_key_next = False
        elif byte == 0x2C and level is not None:
            self.in_scalar = False
            if isinstance(level.key, int) and level.is_array:
                level.key += 1
            else:
                level.is_key_next = True
        else:
            self.in_scalar = byte not in b" \t\r\n"
