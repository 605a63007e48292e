"""Answers about tokens, which need no engine."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from radixrt.protocol import DescribeTokenizer, Detokenize, Part, Tokenize
from radixrt.runtime.frontend.branches import Branch
from radixrt.runtime.frontend.chat import ChatFormat
from radixrt.runtime.frontend.reasoning import reasoning_of_template
from radixrt.runtime.frontend.sessions import Session
from radixrt.runtime.frontend.validation import check_ids, check_parts
from radixrt.runtime.frontend.writer import BranchWriter
from radixrt.runtime.grammar.tool_calls import FORMATS
from radixrt.runtime.tokenizer import Tokenizer

MOST_TOKENS = 65_536
"""Tokens of a text that are told at least; of a long context more."""

_LONGEST_NAME = 64


class TokenQuestions:
    """Answers ``Tokenize``, ``Detokenize`` and ``DescribeTokenizer`` with the data of a ``Reply``.

    Raises ``InvalidArgument``.
    """

    def __init__(
        self, tokenizer: Tokenizer, chat: ChatFormat, *, vocab_size: int, max_context: int
    ) -> None:
        self._tokenizer = tokenizer
        self._chat = chat
        # Tokens of a text that no context holds can be asked for: the asker cuts it where it wants.
        self._writer = BranchWriter(tokenizer, chat, max(16 * max_context, MOST_TOKENS))
        self._vocab_size = vocab_size
        self._max_context = max_context

    def answer(
        self, session: Session, question: Tokenize | Detokenize | DescribeTokenizer
    ) -> dict[str, Any]:
        match question:
            case Tokenize():
                return self._tokenize(session, question)
            case Detokenize(token_ids=token_ids):
                check_ids(token_ids, self._vocab_size)
                text = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
                return {"text": text}
            case DescribeTokenizer():
                return self._describe()

    def _tokenize(self, session: Session, question: Tokenize) -> dict[str, Any]:
        check_parts(question.parts, self._vocab_size)
        branch = Branch(session, -1, 0)
        for part in question.parts:
            self._writer.write(branch, part)
        self._writer.settle(branch)
        token_ids = branch.head.flat() if branch.head is not None else np.zeros(0, np.int32)
        if not question.add_special_tokens and self._has_start(question.parts):
            token_ids = token_ids[len(self._tokenizer.start_ids) :]
        return {
            "token_ids": token_ids.tolist(),
            "tokens": [self._tokenizer.token_text(i) for i in token_ids.tolist()],
            "max_context": self._max_context,
        }

    def _has_start(self, parts: tuple[Part, ...]) -> bool:
        """Whether what begins a text was put in front of these parts: not where they spell it."""
        if not parts or parts[0].kind not in ("text", "markup"):
            return False
        start_ids = self._tokenizer.start_ids.tolist()
        head = parts[0].text[: 16 * _LONGEST_NAME]
        spelled = self._tokenizer.encode(head, at_start=True, markup=parts[0].kind == "markup")
        return bool(spelled[: len(start_ids)].tolist() != start_ids)

    def _describe_reasoning(self) -> dict[str, Any] | None:
        tags = reasoning_of_template(self._chat.source)
        if tags is None:
            return None
        closing = self._tokenizer.encode(tags.closing, markup=True).tolist()
        return {**dataclasses.asdict(tags), "closing_id": closing[0] if len(closing) == 1 else None}

    def _describe(self) -> dict[str, Any]:
        tokenizer = self._tokenizer
        names = tokenizer.special_tokens
        return {
            "tokenizer_class": str(tokenizer.config.get("tokenizer_class", "")),
            "vocab_size": self._vocab_size,
            "special_tokens": names,
            "special_token_ids": {
                name: tokenizer.special_ids[text]
                for name, text in names.items()
                if text in tokenizer.special_ids
            },
            "added_special_tokens": tokenizer.special_ids,
            "end_ids": sorted(tokenizer.end_ids),
            "max_context": self._max_context,
            "chat_template": self._chat.source,
            "tool_format": dataclasses.asdict(FORMATS[self._chat.tool_format]),
            "reasoning": self._describe_reasoning(),
            "config": {
                name: value for name, value in tokenizer.config.items() if name != "chat_template"
            },
        }
