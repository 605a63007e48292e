"""What a program appends becomes tokens of its branch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from radixrt.errors import InvalidArgument, PromptTooLong
from radixrt.protocol import Part
from radixrt.runtime.branches import Branch
from radixrt.runtime.chat import ChatFormat
from radixrt.runtime.tokenizer import Tokenizer


class BranchWriter:
    """Appends parts to branches: text is gathered and tokenized as one piece when something else
    follows it, so segment ends are token boundaries."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat, max_context: int) -> None:
        self._tokenizer = tokenizer
        self._chat = chat
        self._max_context = max_context

    def write(self, branch: Branch, part: Part) -> None:
        """Append a checked part. Raises ``InvalidArgument`` and ``PromptTooLong``."""
        if part.kind == "text":
            branch.pending_text.append(part.text)
            return
        self.settle(branch)
        if part.kind == "tokens":
            if part.token_ids:
                branch.append("text", self._text_of(part), np.asarray(part.token_ids, np.int32))
        elif part.kind == "tools":
            branch.turns = self._chat.declare(branch.turns, part.text)
        else:
            self._write_role(branch, part)
        self._check_length(branch)

    def settle(self, branch: Branch) -> None:
        """Tokenize the gathered text. Raises ``PromptTooLong``."""
        if not branch.pending_text:
            return
        text = "".join(branch.pending_text)
        branch.pending_text.clear()
        if not text:
            return
        at_start = branch.num_tokens == 0
        token_ids = self._tokenizer.encode(text, at_start=at_start)
        if at_start:
            token_ids = np.concatenate([self._tokenizer.start_ids, token_ids])
        branch.append("text", text, token_ids)
        self._check_length(branch)

    def begin(self, branch: Branch) -> None:
        """Settle, and give a branch without any token the one that a model begins from."""
        self.settle(branch)
        if branch.num_tokens:
            return
        token_ids = self._tokenizer.fallback_start_ids
        if not len(token_ids):
            raise InvalidArgument(
                "branch", branch.id, "it is empty and the model has no start token; append text"
            )
        branch.append("text", "", token_ids)

    def _write_role(self, branch: Branch, part: Part) -> None:
        if part.kind == "role_begin":
            markup, turns = self._chat.begin(branch.turns, part.text)
        else:
            markup, turns = self._chat.end(branch.turns, part.text)
        at_start = branch.num_tokens == 0
        bos = self._tokenizer.special_tokens.get("bos_token")
        if not at_start and bos:
            markup = markup.removeprefix(bos)
        token_ids = self._tokenizer.encode(markup, at_start=at_start, markup=True)
        if at_start and not self._chat.is_template:
            token_ids = np.concatenate([self._tokenizer.start_ids, token_ids])
        branch.append("role", markup, token_ids)
        branch.turns = turns

    def _text_of(self, part: Part) -> Callable[[], str]:
        return lambda: self._tokenizer.decode(list(part.token_ids))

    def _check_length(self, branch: Branch) -> None:
        if branch.num_tokens > self._max_context:
            raise PromptTooLong(
                f"branch {branch.id} has {branch.num_tokens} tokens; the context holds "
                f"{self._max_context}; append less"
            )
