"""The free text before a constraint begins: reasoning, or an answer that may call a tool."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from radixrt.runtime.grammar.tools import Tools
from radixrt.runtime.grammar.vocabulary import Vocabulary
from radixrt.runtime.wire import GrammarSpec

_CLOSING_TAG = re.compile(r"</([^<>]+)>")
_PYTHON_TAG = "<|python_tag|>"


class Decision(NamedTuple):
    """What follows from a sampled token.

    ``begins``: the constraint begins, ``surplus`` is what the token spells beyond the free text.
    ``instead``: tokens to append in place of the sampled one; ``then``: tokens to append after it.
    """

    begins: bool = False
    surplus: bytes = b""
    instead: list[int] | None = None
    then: tuple[int, ...] = ()


@dataclass(slots=True)
class Marker:
    """A text that ends a free part. ``is_required``: the part cannot end without it."""

    text: bytes
    token_ids: list[int]
    is_required: bool


@dataclass(slots=True, eq=False)
class FreeText:
    """Watches free text for the markers after which the constraint begins, one after the other.

    ``opening`` are the tokens of the tag that opens the free part, as long as it is open whether
    there will be one at all: then the constraint's first token may come at once.
    ``begins_with`` is a text that, at the very beginning, is the constraint's already.
    """

    vocabulary: Vocabulary
    ends: frozenset[int]
    markers: list[Marker]
    opening: list[int] = field(default_factory=list)
    begins_with: bytes = b""
    _tail: bytes = b""
    _is_first: bool = True

    @property
    def needs_mask(self) -> bool:
        """Whether the next token is masked: by the constraint, and ``also_allowed``."""
        return bool(self.opening)

    @property
    def also_allowed(self) -> list[int]:
        """Tokens beside the constraint's own that may come next."""
        return self.opening[:1]

    @property
    def is_optional(self) -> bool:
        """Whether the text may end without the constraint."""
        return not any(marker.is_required for marker in self.markers)

    @property
    def num_closing(self) -> int:
        """Tokens that it takes to come to the constraint."""
        if self.opening:
            return 0
        return sum(len(marker.token_ids) for marker in self.markers if marker.is_required)

    def take(self, token_id: int, left: int, needed: int) -> Decision:
        """Look at a sampled token; ``left`` tokens may be appended, itself included, of which the
        constraint takes at least ``needed``."""
        piece = self.vocabulary.spell(token_id)
        is_first, self._is_first = self._is_first, False
        if self.opening:
            opening, self.opening = self.opening, []
            if token_id != opening[0]:
                return Decision(begins=True, surplus=piece)
            self._tail = b"".join(map(self.vocabulary.spell, opening))
            return Decision(then=tuple(opening[1:]))
        if is_first and self.begins_with and piece.lstrip().startswith(self.begins_with):
            return Decision(begins=True, surplus=piece.lstrip())
        if not self.markers:
            return Decision()
        marker = self.markers[0]
        is_end = token_id in self.ends
        is_late = left - 1 < self.num_closing + needed
        if marker.is_required and (is_end or is_late):
            found = self._tail + piece
            if not is_end and marker.text in found and found.endswith(marker.text):
                return self._found(marker, found)
            return self._close(marker)
        if is_end:
            return Decision()
        return self._found(marker, self._tail + piece)

    def without(self, surplus: bytes, token_id: int) -> list[int]:
        """Return what a token spells before ``surplus`` as tokens."""
        kept = self.vocabulary.spell(token_id).removesuffix(surplus)
        return _spelled(kept, self.vocabulary) if kept else []

    def _found(self, marker: Marker, text: bytes) -> Decision:
        at = text.find(marker.text)
        if at < 0:
            keep = len(marker.text) - 1
            self._tail = text[-keep:] if keep else b""
            return Decision()
        self.markers.pop(0)
        surplus = text[at + len(marker.text) :]
        self._tail = surplus
        return Decision(begins=not self.markers, surplus=surplus if not self.markers else b"")

    def _close(self, marker: Marker) -> Decision:
        self.markers.pop(0)
        self._tail = b""
        return Decision(begins=not self.markers, instead=list(marker.token_ids))


def free_text(
    spec: GrammarSpec,
    tools: Tools | None,
    vocabulary: Vocabulary,
    ends: frozenset[int],
    prompt_tail: bytes,
) -> FreeText | None:
    """Return the free text that a constraint lets come first; None when it binds at once.

    ``ends`` are the tokens that end a text. ``prompt_tail`` is the end of the prompt: in a
    reasoning section that it has opened, the text is free until the section ends. Else a model may
    open one, or may not.
    """
    markers: list[Marker] = []
    opening: list[int] = []
    begins_with = b""
    is_auto = tools is not None and tools.is_free_first
    if spec.after:
        markers.append(_marker(spec.after, vocabulary, is_required=True))
        tag = _CLOSING_TAG.fullmatch(spec.after)
        if tag is not None:
            opened, closed = f"<{tag.group(1)}>".encode(), spec.after.encode()
            if prompt_tail.rfind(opened) <= prompt_tail.rfind(closed) and not is_auto:
                opening = _spelled(opened, vocabulary)
    if is_auto and tools is not None:
        if tools.style.trigger:
            markers.append(_marker(tools.style.trigger, vocabulary, is_required=False))
        else:
            markers.append(_marker(_PYTHON_TAG, vocabulary, is_required=False))
            begins_with = b"{" if not spec.after else b""
    if not markers:
        return None
    return FreeText(vocabulary, ends, markers, opening, begins_with)


def _marker(text: str, vocabulary: Vocabulary, *, is_required: bool) -> Marker:
    return Marker(text.encode(), _spelled(text.encode(), vocabulary), is_required)


def _spelled(text: bytes, vocabulary: Vocabulary) -> list[int]:
    """Return the tokens of a tag: the control token of that name, if there is one."""
    control = vocabulary.control_id(text.decode("utf-8", "replace"))
    return vocabulary.encode(text) if control is None else [control]
