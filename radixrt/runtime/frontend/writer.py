"""What a program appends becomes tokens of its branch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from radixrt.errors import InvalidArgument, PromptTooLong
from radixrt.protocol import Part
from radixrt.runtime.frontend.branches import Branch
from radixrt.runtime.frontend.chat import ChatFormat
from radixrt.runtime.frontend.conversation import control_pattern, marked, pieces, read_conversation
from radixrt.runtime.tokenizer import TokenIds, Tokenizer

_CHARACTERS_A_TOKEN = 8
_SHORT_TEXT = 65_536
"""Characters up to which a text is tokenized without counting first."""


class BranchWriter:
    """Appends parts to branches: text is gathered and tokenized as one piece when something else
    follows it, so segment ends are token boundaries."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat, max_context: int) -> None:
        self._tokenizer = tokenizer
        self._chat = chat
        self._max_context = max_context
        self._controls = control_pattern(tokenizer.special_ids)

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
        elif part.kind == "chat":
            self._write_chat(branch, part)
        elif part.kind == "markup":
            self._write_text(branch, part.text, markup=True)
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
        self._write_text(branch, text, markup=False)
        self._check_length(branch)

    def _write_text(self, branch: Branch, text: str, *, markup: bool) -> None:
        at_start = branch.num_tokens == 0
        token_ids = self._encode(text, at_start=at_start, markup=markup)
        start_ids = self._tokenizer.start_ids
        has_start = markup and token_ids[: len(start_ids)].tolist() == start_ids.tolist()
        if at_start and not has_start:
            token_ids = np.concatenate([start_ids, token_ids])
        branch.append("text", text, token_ids)

    def _write_chat(self, branch: Branch, part: Part) -> None:
        if branch.num_tokens or branch.turns.roles:
            raise InvalidArgument(
                "chat", f"branch {branch.id}", "it is not empty; a chat part is the first one"
            )
        conversation = marked(read_conversation(part.text), self._controls)
        rendered = pieces(self._chat.render(conversation))
        has_markup = self._chat.is_template
        if len(rendered) > self._max_context:
            raise self._too_long(len(rendered), at_least=True)
        encoded = [
            self._encode(text, at_start=not index, markup=is_markup and has_markup)
            for index, (text, is_markup) in enumerate(rendered)
        ]
        if not has_markup:
            encoded.insert(0, self._tokenizer.start_ids)
        if encoded:
            text = "".join(text for text, _ in rendered)
            branch.append("role", text, np.concatenate(encoded))

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

    def _encode(self, text: str, *, at_start: bool, markup: bool) -> TokenIds:
        # Whoever tokenizes serves nobody else meanwhile: no more of a text is read than could fit.
        limit = self._max_context
        if len(text) > max(_CHARACTERS_A_TOKEN * limit, _SHORT_TEXT):
            least = self._tokenizer.count_up_to(text, limit)
            if least > limit:
                raise self._too_long(least, at_least=True)
        return self._tokenizer.encode(text, at_start=at_start, markup=markup)

    def _check_length(self, branch: Branch) -> None:
        num_tokens = branch.num_tokens
        if num_tokens > self._max_context:
            raise self._too_long(num_tokens)

    def _too_long(self, num_tokens: int, *, at_least: bool = False) -> PromptTooLong:
        or_more = " or more" if at_least else ""
        return PromptTooLong(
            f"the prompt has {num_tokens}{or_more} tokens, {num_tokens - self._max_context}"
            f"{or_more} beyond the context of {self._max_context}; append less"
        )
