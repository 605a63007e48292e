"""The training stream: documents of all tasks, packed into rows, each batch from its own seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from tools.nano import arithmetic, chat, classify, extract, puzzle, react, route
from tools.nano.document import Document
from tools.nano.encoder import END_OF_TEXT_ID, Encoder

# Share of documents (not of tokens; classification documents are several times longer).
MIXTURE: tuple[tuple[float, Callable[[random.Random], Document]], ...] = (
    (0.15, classify.training_document),
    (0.05, classify.chat_document),
    (0.10, arithmetic.training_document),
    (0.03, arithmetic.chat_document),
    (0.11, react.training_document),
    (0.04, react.chat_document),
    (0.10, extract.training_document),
    (0.05, extract.chat_document),
    (0.14, chat.training_document),
    (0.08, route.training_document),
    (0.05, route.chat_document),
    (0.10, puzzle.training_document),
)
WEIGHT_SHIFT = 12  # a packed element is token id | (loss weight index << 12)


def documents(rng: random.Random) -> Iterator[Document]:
    shares = [share for share, _ in MIXTURE]
    makers = [maker for _, maker in MIXTURE]
    while True:
        for maker in rng.choices(makers, shares, k=64):
            yield maker(rng)


def packed_batch(encoder: Encoder, seed: int, rows: int, length: int) -> NDArray[np.uint16]:
    """Rows of documents end to end; shape [rows, length], every row starts with a document.

    Half the rows start with the end-of-text token, so that a prompt may have it in front or not.
    A document that does not fit is cut at the row's end.
    """
    rng = random.Random(seed)
    stream = documents(rng)
    batch = np.empty((rows, length), dtype=np.uint16)
    for row in range(rows):
        packed: list[int] = [END_OF_TEXT_ID] if rng.random() < 0.5 else []
        while len(packed) < length:
            for text, weight in next(stream).pieces:
                mark = weight << WEIGHT_SHIFT
                packed += [token | mark for token in encoder.encode(text)]
            packed.append(END_OF_TEXT_ID | 1 << WEIGHT_SHIFT)
        batch[row] = packed[:length]
    return batch
