"""``tokenizer.json`` in a form that the matchers' engine reads, whatever decodes its tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer


class WordPieces:
    """A tokenizer whose tokens are words and their continuations, as the engine asks for it.

    ``tokens[i]`` are the bytes of token ``i`` in the middle of a text, as the tokenizer's own
    decoder spells it there: a word has its blank in front, a continuation has lost its mark.
    """

    bos_token_id = None

    def __init__(self, tokenizer_json: str, vocab_size: int, end_ids: Sequence[int]) -> None:
        tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special_token_ids = [i for i, token in added.items() if token.special]
        self.eos_token_id = end_ids[0]
        special = frozenset(self.special_token_ids)
        anchor = next(i for i in range(vocab_size) if i not in special)
        before = len(tokenizer.decode([anchor], skip_special_tokens=False))
        self.tokens: list[bytes] = []
        for token_id in range(vocab_size):
            text = tokenizer.decode([anchor, token_id], skip_special_tokens=False)[before:]
            if token_id in special:
                text = tokenizer.id_to_token(token_id) or ""
            self.tokens.append(text.encode())

        self._by_text = {text: i for i, text in enumerate(self.tokens) if i not in special}
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: bytes | str) -> list[int]:
        """Return tokens that spell a text: the tokenizer's own where they do, else, where the text
        goes on with a word or has what the tokenizer changes, the longest ones. What no token
        spells is left out."""
        data = text.encode() if isinstance(text, str) else text
        token_ids: list[int] = self._tokenizer.encode(
            data.decode("utf-8", "replace"), add_special_tokens=False
        ).ids
        if b"".join(self.tokens[token_id] for token_id in token_ids) == data:
            return token_ids
        token_ids, at = [], 0
        while at < len(data):
            ends = range(min(at + self._longest, len(data)), at, -1)
            end = next((end for end in ends if data[at:end] in self._by_text), None)
            if end is not None:
                token_ids.append(self._by_text[data[at:end]])
            at = end or at + 1
        return token_ids


def readable(tokenizer_json: str) -> tuple[str, bool]:
    """Return a tokenizer file that neither pads nor truncates and has a decoder that the engine
    knows, if there is one; and whether it is one of ``WordPieces``, which the engine cannot read.
    """
    data = json.loads(tokenizer_json)
    data["padding"] = data["truncation"] = None
    data["decoder"] = _known_decoder(data.get("decoder"))
    decoder = data["decoder"] or {}
    return json.dumps(data), decoder.get("type") == "WordPiece"


def _known_decoder(decoder: Any) -> Any:
    """Return a decoder that spells a token in the middle of a text as ``decoder`` does."""
    if not isinstance(decoder, dict):
        return decoder
    if decoder.get("type") == "Sequence":
        inner = [_known_decoder(part) for part in decoder.get("decoders", ())]
        return {**decoder, "decoders": inner}
    if decoder.get("type") == "Metaspace":
        mark = {"String": decoder.get("replacement", "▁")}
        return {"type": "Replace", "pattern": mark, "content": " "}
    return decoder
