"""Text to token ids and back, from a model directory's ``tokenizer.json``; no transformers.

What a program writes is text: a piece of it that spells a special token is tokenized as ordinary
characters. Only the markup of a chat template becomes special tokens. The beginning-of-sequence
token and a tokenizer's leading space belong to the start of a branch and nowhere else.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from radixrt.errors import ModelError

TokenIds = NDArray[np.int32]

_REPLACEMENT = "\ufffd"
_LONGEST_PARTIAL = 16
"""Tokens without a whole character after which their bytes count as broken, not as unfinished."""


_COUNTED_AT_ONCE = 16_384
_CUT = 32
"""Characters that are counted at once, and tokens by which a cut may add to them."""

_WINDOW_TOKENS = 4
"""Tokens before a block that are decoded with it; more where these are not whole characters."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; empty when there is no such file. Raises ``ModelError``."""
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold an object")
    return content


class Tokenizer:
    """The tokenizer of a model directory. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Raises ``ModelError`` without a readable ``tokenizer.json`` in ``path``."""
        spec = read_json(path / "tokenizer.json")
        if not spec:
            raise ModelError(f"{path} has no tokenizer.json; save the model's fast tokenizer there")
        self.config = read_json(path / "tokenizer_config.json")
        self._start = _build(spec, path)
        inner_spec = _without_leading_space(spec)
        self._inner = self._start if inner_spec == spec else _build(inner_spec, path)
        self.vocab_size: int = self._start.get_vocab_size(with_added_tokens=True)
        self.special_tokens = self._named_tokens()
        self.start_ids = self._read_start_ids()
        self.end_ids = self._read_end_ids(path)
        self.special_ids = self._read_special_ids()
        self._anchor = self._inner.encode("a", add_special_tokens=False).ids
        self._anchor_text: str = self._inner.decode(self._anchor, skip_special_tokens=False)
        self._token_texts: dict[int, str] = {}

    def encode(self, text: str, *, at_start: bool = False, markup: bool = False) -> TokenIds:
        """Return the token ids of ``text``, without a beginning-of-sequence token.

        ``at_start``: nothing precedes it in its branch. ``markup``: special tokens that it spells
        are meant.
        """
        tokenizer = self._start if at_start else self._inner
        tokenizer.encode_special_tokens = not markup
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, dtype=np.int32)

    def count_up_to(self, text: str, limit: int) -> int:
        """Return how many tokens a text has at least; it is read until these are more than
        ``limit``."""
        count = 0
        self._inner.encode_special_tokens = True
        for start in range(0, len(text), _COUNTED_AT_ONCE):
            piece = text[start : start + _COUNTED_AT_ONCE]
            # The cut may have made tokens of its own.
            count += max(len(self._inner.encode(piece, add_special_tokens=False).ids) - _CUT, 0)
            if count > limit:
                break
        return count

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are no characters become U+FFFD."""
        text: str = self._inner.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """Return the text one token stands for in the middle of a text; special tokens by name."""
        text = self._token_texts.get(token_id)
        if text is None:
            both = self.decode([*self._anchor, token_id], skip_special_tokens=False)
            text = both.removeprefix(self._anchor_text)
            self._token_texts[token_id] = text
        return text

    @property
    def fallback_start_ids(self) -> TokenIds:
        """What a model is given to begin from nothing: its start token, else an end token."""
        if len(self.start_ids):
            return self.start_ids
        bos = self._id_of(self.special_tokens.get("bos_token"))
        first = bos if bos is not None else next(iter(sorted(self.end_ids)), None)
        return np.asarray([] if first is None else [first], dtype=np.int32)

    def control_tokens(self, names: Iterable[str]) -> dict[int, str]:
        """Return the control tokens of those names that there are, with their names."""
        return {self.special_ids[name]: name for name in names if name in self.special_ids}

    def is_special(self, token_id: int) -> bool:
        """Whether a token is one of the control tokens that text cannot spell."""
        added = self._start.get_added_tokens_decoder().get(token_id)
        return added is not None and bool(added.special)

    def _read_special_ids(self) -> dict[str, int]:
        """Every control token's name, with its id."""
        added = self._start.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items() if token.special}

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self._start.token_to_id(token)

    def _named_tokens(self) -> dict[str, str]:
        """bos_token, eos_token, … as text; the config spells them as strings or as objects."""
        named: dict[str, str] = {}
        for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = self.config.get(name)
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                named[name] = content
        return named

    def _read_start_ids(self) -> TokenIds:
        bos = self._id_of(self.special_tokens.get("bos_token"))
        adds_bos = self.config.get("add_bos_token")
        if adds_bos is None:
            # Newer files say it with a post-processor alone.
            plain = self._start.encode("a", add_special_tokens=False).ids
            full = self._start.encode("a", add_special_tokens=True).ids
            at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
            return np.asarray(full[:at], dtype=np.int32)
        return np.asarray([bos] if adds_bos and bos is not None else [], dtype=np.int32)

    def _read_end_ids(self, path: Path) -> frozenset[int]:
        ends: set[int] = set()
        for file in ("config.json", "generation_config.json"):
            content = read_json(path / file)
            value = content.get("eos_token_id", content.get("text_config", {}).get("eos_token_id"))
            ends.update(i for i in (value if isinstance(value, list) else [value]) if i is not None)
        eos = self._id_of(self.special_tokens.get("eos_token"))
        if eos is not None:
            ends.add(eos)
        return frozenset(ends)


class Detokenizer:
    """The text of tokens that arrive one by one, in whole characters.

    ``text`` grows by ``push``; ``ends[i]`` is its length in characters after token ``i`` (tokens
    that only begin a character have the length before it). Decoding looks at a short window of
    tokens, so a token costs the same however long the text is.
    """

    def __init__(
        self, tokenizer: Tokenizer, context: list[int], shown: Mapping[int, str] | None = None
    ) -> None:
        """``context``: the tokens before; a few are enough to decide about a leading space.
        ``shown``: control tokens that are text here, with that text."""
        self._tokenizer = tokenizer
        self._shown = shown or {}
        self._window = list(context)
        self._known_text = tokenizer.decode(self._window).rstrip(_REPLACEMENT)
        # A character that the context only begins stays in the window until it is whole.
        self._known = len(self._window)
        while tokenizer.decode(self._window[: self._known]).endswith(_REPLACEMENT):
            self._known -= 1
        self.text = ""
        self.ends: list[int] = []

    def push(self, token_id: int) -> None:
        """Add a token."""
        if token_id in self._shown:
            self.text += self._shown[token_id]
            self.ends.append(len(self.text))
            return
        self._window.append(token_id)
        decoded = self._tokenizer.decode(self._window)
        new = decoded[len(self._known_text) :]
        is_whole = new != "" and not new.endswith(_REPLACEMENT)
        if is_whole or len(self._window) - self._known > _LONGEST_PARTIAL:
            self.text += new
            self._window = self._window[self._known :]
            self._known = len(self._window)
            self._known_text = self._tokenizer.decode(self._window)
        self.ends.append(len(self.text))

    def num_tokens_within(self, length: int) -> int:
        """Return how many of the first tokens spell at most ``length`` characters and no part of
        another."""
        covered = bisect_right(self.ends, length)
        if covered == 0:
            return 0
        # Trailing tokens that added nothing may be the beginning of the next character.
        end = self.ends[covered - 1]
        return bisect_left(self.ends, end) + 1 if end > 0 else 0


class BlockDetokenizer:
    """The text that a ``Detokenizer`` has after the same tokens, made in blocks at a fraction of
    its cost. Where a block holds broken characters, which of them count is decided token by token.
    """

    def __init__(self, tokenizer: Tokenizer, context: list[int]) -> None:
        """``context``: the tokens before."""
        self._tokenizer = tokenizer
        self._context = context
        self._token_ids: list[int] = []
        self._window = list(context)
        self._known_text = tokenizer.decode(self._window).rstrip(_REPLACEMENT)
        self._text = ""
        self._is_whole = True
        self._by_token: Detokenizer | None = None

    def extend(self, token_ids: list[int]) -> None:
        """Add tokens."""
        self._token_ids += token_ids
        if self._by_token is not None:
            for token_id in token_ids:
                self._by_token.push(token_id)
            return
        self._window += token_ids
        new = self._tokenizer.decode(self._window)[len(self._known_text) :]
        whole = new.rstrip(_REPLACEMENT)
        self._is_whole = whole == new
        if _REPLACEMENT in whole:
            self._go_by_token()
        elif self._is_whole and new:
            self._text += new
            self._shorten_window(len(token_ids))

    @property
    def text(self) -> str:
        """The text so far."""
        if not self._is_whole and self._by_token is None:
            self._go_by_token()
        return self._text if self._by_token is None else self._by_token.text

    def _shorten_window(self, num_new: int) -> None:
        # One that begins within a character would spoil the next; an empty one hides its space.
        window = self._window
        for size in (_WINDOW_TOKENS, num_new, len(window)):
            self._window = window[-size:]
            self._known_text = self._tokenizer.decode(self._window)
            if self._known_text and _REPLACEMENT not in self._known_text:
                return

    def _go_by_token(self) -> None:
        self._by_token = Detokenizer(self._tokenizer, self._context)
        for token_id in self._token_ids:
            self._by_token.push(token_id)


def _build(spec: dict[str, Any], path: Path) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path / 'tokenizer.json'} is no tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_leading_space(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer for text in the middle: SentencePiece's models put a space in front of any
    text they are given, which is right at the start only."""

    def strip(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        kind = part.get("type")
        if kind == "Sequence":
            key = next((k for k in ("normalizers", "pretokenizers") if k in part), None)
            if key is not None:
                inner = [strip(item) for item in part[key]]
                return {**part, key: [item for item in inner if item is not None]}
        if kind == "Prepend":
            return None
        if kind == "Metaspace" and part.get("prepend_scheme") != "never":
            return {**part, "prepend_scheme": "never"}
        return part

    return {
        **spec,
        "normalizer": strip(spec.get("normalizer")),
        "pre_tokenizer": strip(spec.get("pre_tokenizer")),
    }
