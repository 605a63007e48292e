"""What was written under a constraint: tokens, their bytes, and which of these it is about."""

from __future__ import annotations

from dataclasses import dataclass, field

from radixrt.runtime.grammar.vocabulary import Vocabulary
from radixrt.runtime.wire import TokenMark


@dataclass(slots=True, eq=False)
class Written:
    """A text that grows token by token.

    ``token_ids`` are all that was appended (forced ones at the indices ``forced_at``), ``text``
    their bytes; ``marks`` holds one for each token, where they are wanted. The constraint begins at
    byte ``bound_at``, None as long as the text is free; up to byte ``healed_at`` it spells the end
    of the prompt again.
    """

    vocabulary: Vocabulary
    token_ids: list[int] = field(default_factory=list)
    text: bytearray = field(default_factory=bytearray)
    bound_at: int | None = None
    healed_at: int = 0
    forced_at: list[int] = field(default_factory=list)
    marks: list[TokenMark] = field(default_factory=list)

    @property
    def is_healing(self) -> bool:
        """Whether the end of the prompt is not yet spelled again."""
        return len(self.text) < self.healed_at

    @property
    def bound_bytes(self) -> bytes:
        """The bytes of ``bound_text``."""
        return bytes(self.text[self.healed_at :])

    @property
    def bound_text(self) -> str:
        """The text that the constraint is about."""
        return self.bound_bytes.decode("utf-8", "replace")

    @property
    def num_forced(self) -> int:
        """Tokens that were appended without sampling because no other was possible."""
        return len(self.forced_at)

    def append(self, token_id: int, *, is_forced: bool = False) -> None:
        """Append a token."""
        if is_forced:
            self.forced_at.append(len(self.token_ids))
        self.token_ids.append(token_id)
        self.text += self.vocabulary.texts[token_id]

    def cut(self, num_tokens: int) -> None:
        """Take back all but the first ``num_tokens`` tokens."""
        del self.token_ids[num_tokens:]
        del self.marks[num_tokens:]
        self.text = bytearray(self.vocabulary.decode(self.token_ids))
        self.forced_at = [at for at in self.forced_at if at < num_tokens]
