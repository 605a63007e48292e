"""Fields of a JSON text that are sampled in a way of their own."""

from __future__ import annotations

from collections.abc import Sequence

from radixrt.runtime.grammar.json_path import JsonPath
from radixrt.runtime.grammar.json_text import matches
from radixrt.runtime.wire import FieldParams


class FieldReader:
    """Reads a growing JSON text; ``current`` is the field of ``fields`` that is being written or
    comes next, None between them."""

    def __init__(self, fields: Sequence[FieldParams], text: bytes = b"") -> None:
        """``text`` is what was written so far: none of its tokens count."""
        self.current: FieldParams | None = None
        self._fields = fields
        self._num_tokens = 0
        self._at = JsonPath()
        self.feed(text)

    @property
    def is_used_up(self) -> bool:
        """Whether the field has all the tokens that it may have."""
        most = self.current.max_tokens if self.current is not None else None
        return most is not None and self._num_tokens >= most

    def feed(self, text: bytes) -> None:
        """Read what one more token spells."""
        self._at.feed(text)
        found = None
        if self._at.at_value:
            path = self._at.path
            found = next((f for f in self._fields if matches(f.pointer, path)), None)
        if found is not self.current:
            self.current, self._num_tokens = found, 0
        elif found is not None:
            self._num_tokens += 1
