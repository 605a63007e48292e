"""A training document: pieces of text, each with how much its tokens count in the loss."""

from __future__ import annotations

END_OF_TEXT = "<|endoftext|>"
SYSTEM, USER, ASSISTANT, END, PAD = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
SPECIAL_TOKENS = [END_OF_TEXT, SYSTEM, USER, ASSISTANT, END, PAD]

# Indices into LOSS_WEIGHTS; text nobody can predict gets little, what a tool answers gets nothing.
# A label is one token where other answers are many, so it gets more.
SILENT, FILLER, ANSWER, LABEL = 0, 1, 2, 3
LOSS_WEIGHTS = (0.0, 0.08, 1.0, 4.0)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


class Document:
    """Text under construction. Every piece ends where a token ends, as a program's segments do."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, int]] = []

    def filler(self, text: str) -> Document:
        self.pieces.append((text, FILLER))
        return self

    def answer(self, text: str) -> Document:
        self.pieces.append((text, ANSWER))
        return self

    def label(self, text: str) -> Document:
        self.pieces.append((text, LABEL))
        return self

    def silent(self, text: str) -> Document:
        self.pieces.append((text, SILENT))
        return self

    def system(self, text: str) -> Document:
        return self.filler(f"{SYSTEM}\n{text}{END}\n")

    def user(self, text: str) -> Document:
        return self.filler(f"{USER}\n{text}{END}\n")

    def assistant(self, text: str, one_word: bool = False) -> Document:
        self.filler(f"{ASSISTANT}\n")
        return (self.label if one_word else self.answer)(text).answer(END).filler("\n")

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)
