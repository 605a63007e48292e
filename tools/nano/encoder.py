"""The tokenizer: its training, and an encoder that remembers words for speed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.nano.document import SPECIAL_TOKENS

END_OF_TEXT_ID = 0
VOCAB_SIZE = 4096
# A word takes the space before it. Digits, punctuation marks and newlines stand alone, so that the
# places where programs cut their text are ends of tokens too.
PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\n|[^\S\n]+(?=\S)|[^\S\n]+"
_ASCII_PATTERN = re.compile(r"<\|[a-z]+\|>| ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]|\n|[^\S\n]+")


def train(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A byte-level BPE tokenizer whose first ids are the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=20,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Encoder:
    """Encodes as the tokenizer does, one dictionary look-up a word; ASCII text only."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._words: dict[str, list[int]] = {}
        self._pieces: dict[str, list[int]] = {}

    @classmethod
    def load(cls, folder: str | Path) -> Encoder:
        return cls(Tokenizer.from_file(str(Path(folder) / "tokenizer.json")))

    def encode(self, text: str) -> list[int]:
        short = len(text) < 16
        if short:
            known = self._pieces.get(text)
            if known is not None:
                return known
        ids: list[int] = []
        words = self._words
        for word in _ASCII_PATTERN.findall(text):
            found = words.get(word)
            if found is None:
                found = words[word] = self._tokenizer.encode(word).ids
            ids += found
        if short and len(self._pieces) < 200_000:
            self._pieces[text] = ids
        return ids
