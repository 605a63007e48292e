"""The bytes that a tokenizer's tokens stand for, and look-ups by them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.grammar.string_tokens import StringTokens

Int32 = NDArray[np.int32]


class Vocabulary:
    """Tokens as bytes. Control tokens have none: they are no part of a text.

    ``texts[i]`` are the bytes of token ``i`` in the middle of a text; ``encode`` is the tokenizer
    itself. Look-ups are built when they are first used; nothing changes after that.
    """

    def __init__(
        self,
        texts: Sequence[bytes],
        encode: Callable[[bytes], list[int]],
        control_ids: frozenset[int],
        control_texts: dict[int, bytes],
        end_ids: Sequence[int],
    ) -> None:
        self.texts = texts
        self.encode = encode
        self.control_ids = control_ids
        self.control_texts = control_texts
        self.end_ids = tuple(end_ids)

    def __len__(self) -> int:
        return len(self.texts)

    def build_look_ups(self) -> None:
        """Build the look-ups that searches use now, not when they are first used."""
        _ = self.first_byte, self.lengths, self.closers, self.json_probes, self.printable_bytes
        self.strings.build()

    def decode(self, token_ids: Sequence[int]) -> bytes:
        """Return the bytes of tokens."""
        return b"".join(self.texts[token_id] for token_id in token_ids)

    def spell(self, token_id: int) -> bytes:
        """Return the bytes of a token; a control token is spelled by its name."""
        return self.control_texts.get(token_id) or self.texts[token_id]

    def control_id(self, name: str) -> int | None:
        """Return the control token of that name."""
        return self._control_names.get(name.encode())

    def starting_with(self, prefix: bytes) -> Int32:
        """Return the tokens whose bytes begin with ``prefix``, which is not empty."""
        low = bisect_left(self._sorted_texts, prefix)
        high = low
        after = _successor(prefix)
        high = len(self._sorted_texts) if after is None else bisect_left(self._sorted_texts, after)
        return self._sorted_ids[low:high]

    def within(self, text: bytes) -> list[tuple[int, int]]:
        """Return (token, length) of the tokens whose bytes are a beginning of ``text``."""
        found = []
        for length in range(1, min(len(text), self.longest) + 1):
            found += [(token, length) for token in self._by_text.get(text[:length], ())]
        return found

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.texts), default=0)

    @cached_property
    def first_byte(self) -> NDArray[np.int16]:
        """The first byte of every token; -1 for those without bytes."""
        return np.array([text[0] if text else -1 for text in self.texts], np.int16)

    @cached_property
    def lengths(self) -> NDArray[np.int16]:
        """The number of bytes of every token."""
        return np.array([len(text) for text in self.texts], np.int16)

    @cached_property
    def strings(self) -> StringTokens:
        """What tokens add to the strings of JSON."""
        return StringTokens(self.texts)

    @cached_property
    def closers(self) -> Int32:
        """Tokens of closing characters alone, the longest first: what ends most texts soonest."""
        closing = frozenset(b'"}])>')
        ids = [i for i, text in enumerate(self.texts) if text and closing.issuperset(text)]
        return np.array(sorted(ids, key=lambda i: (-len(self.texts[i]), i)), np.int32)

    @cached_property
    def json_probes(self) -> tuple[int, int, int, int]:
        """The tokens of a letter, a quote, a closing brace and a closing bracket; -1 for none."""
        found = [self._by_text.get(text, [-1])[0] for text in (b"a", b'"', b"}", b"]")]
        return found[0], found[1], found[2], found[3]

    @cached_property
    def single_bytes(self) -> Int32:
        """Tokens of one byte."""
        return np.flatnonzero(self.lengths == 1).astype(np.int32)

    @cached_property
    def printable_bytes(self) -> tuple[list[int], list[int]]:
        """Tokens of one byte: of ASCII's printable characters, tabs and line ends; and others."""
        printable: list[int] = []
        others: list[int] = []
        for token_id in self.single_bytes.tolist():
            is_printable = 0x20 <= self.texts[token_id][0] < 0x7F or self.texts[token_id] in (
                b"\t",
                b"\n",
            )
            (printable if is_printable else others).append(token_id)
        return printable, others

    @cached_property
    def _by_text(self) -> dict[bytes, list[int]]:
        by_text: dict[bytes, list[int]] = {}
        for token_id, text in enumerate(self.texts):
            if text:
                by_text.setdefault(text, []).append(token_id)
        return by_text

    @cached_property
    def _sorted_ids(self) -> Int32:
        ids = [token_id for token_id, text in enumerate(self.texts) if text]
        return np.array(sorted(ids, key=self.texts.__getitem__), np.int32)

    @cached_property
    def _sorted_texts(self) -> list[bytes]:
        return [self.texts[token_id] for token_id in self._sorted_ids.tolist()]

    @cached_property
    def _control_names(self) -> dict[bytes, int]:
        return {text: token_id for token_id, text in self.control_texts.items()}


def _successor(prefix: bytes) -> bytes | None:
    """Return the first bytes after everything that begins with ``prefix``."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def bit_of(bitmask: Int32, token_id: int) -> bool:
    """Whether a bit mask (int32 [ceil(V / 32)]) allows a token."""
    return bool(int(bitmask[token_id >> 5]) >> (token_id & 31) & 1)


def bits_of(bitmask: Int32, token_ids: Int32) -> NDArray[np.bool_]:
    """Return which of the tokens a bit mask allows, bool [n]."""
    found: NDArray[np.bool_] = (bitmask[token_ids >> 5] >> (token_ids & 31)) & 1 != 0
    return found


def allowed_ids(bitmask: Int32, vocab_size: int) -> NDArray[np.int64]:
    """Return the tokens that a bit mask allows, ascending."""
    bits = np.unpackbits(bitmask.view(np.uint8), bitorder="little")
    return np.flatnonzero(bits[:vocab_size])


def clear_bits(bitmask: Int32, token_ids: Int32 | Sequence[int]) -> None:
    """Forbid tokens in a bit mask, in place."""
    ids = np.asarray(token_ids, np.int64)
    np.bitwise_and.at(bitmask, ids >> 5, ~(np.int32(1) << (ids & 31).astype(np.int32)))


def set_bit(bitmask: Int32, token_id: int) -> None:
    """Allow a token in a bit mask, in place."""
    bitmask[token_id >> 5] |= np.int32(1) << np.int32(token_id & 31)


def count_bits(bitmask: Int32) -> int:
    """Return how many tokens a bit mask allows."""
    return int(np.bitwise_count(bitmask.view(np.uint32)).sum())
