"""Constraints through the llguidance engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.wire import GrammarSpec

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_JSON_FORM: JsonCompileOptions = {"whitespace_flexible": True, "whitespace_pattern": " ?"}
"""At most one blank between tokens, as ``json.dumps`` writes it; never an endless run."""


class LlguidanceCompiler:
    """Compiles regexes, JSON schemas and Lark grammars over the tokens of ``tokenizer.json``.

    ``vocab_size`` is the model's, padding included; ``eos_token_ids`` end a constrained text.
    """

    def __init__(self, tokenizer_file: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        text = _without_padding(tokenizer_file.read_text(encoding="utf-8"))
        self._vocab_size = vocab_size
        self._tokenizer = LLTokenizer(text, n_vocab=vocab_size, eos_token=list(eos_token_ids))

    def compile(self, spec: GrammarSpec) -> LlguidanceMatcher:
        """Return a fresh matcher; ``GrammarError`` with the engine's reason when it cannot be."""
        if spec.kind == "regex":
            grammar = LLMatcher.grammar_from_regex(spec.text)
        elif spec.kind == "json_schema":
            try:
                grammar = LLMatcher.grammar_from_json_schema(spec.text, defaults=_JSON_FORM)
            except ValueError as error:
                raise GrammarError(f"json_schema: {error}") from None
        else:
            grammar = LLMatcher.grammar_from_lark(spec.text)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():  # the constructor never raises
            raise GrammarError(f"{spec.kind}: {matcher.get_error()}")
        return LlguidanceMatcher(matcher, -(-self._vocab_size // 32))


class LlguidanceMatcher:
    """One constrained generation; see ``Matcher``. Its errors, which the engine keeps as a state
    that masks everything but the end, are raised here."""

    def __init__(self, matcher: LLMatcher, mask_len: int) -> None:
        self._matcher = matcher
        self._mask_len = mask_len

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        """Write the mask into ``bitmask`` int32 [ceil(V / 32)], contiguous."""
        assert bitmask.shape == (self._mask_len,)
        assert bitmask.flags["C_CONTIGUOUS"]
        self._matcher.unsafe_compute_mask_ptr(bitmask.ctypes.data, bitmask.nbytes)
        self._raise_error()

    def advance(self, token_id: int) -> None:
        """Accept a token that the last mask allowed."""
        if not self._matcher.consume_token(token_id):
            self._raise_error()
            raise GrammarError(f"token {token_id} is not allowed here")

    def rollback(self, num_tokens: int) -> None:
        """Take the last ``num_tokens`` accepted tokens back."""
        if not self._matcher.rollback(num_tokens):
            self._raise_error()
            raise GrammarError(f"cannot take {num_tokens} tokens back")

    def fork(self) -> LlguidanceMatcher:
        """Return an independent matcher in the same state (it shares the lexer's limits)."""
        return LlguidanceMatcher(self._matcher.deep_copy(), self._mask_len)

    @property
    def is_accepting(self) -> bool:
        """Whether the text so far is complete."""
        return bool(self._matcher.is_accepting())

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end token can follow."""
        return bool(self._matcher.is_stopped())

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(self._matcher.get_error())


def _without_padding(tokenizer_json: str) -> str:
    """Return a tokenizer file that neither pads nor truncates what it is given."""
    data = json.loads(tokenizer_json)
    data["padding"] = data["truncation"] = None
    return json.dumps(data)
