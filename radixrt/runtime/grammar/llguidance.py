"""Matchers of the llguidance engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance._lib import LLParserLimits
from llguidance._tokenizer import TokenizerWrapper
from numpy.typing import NDArray

from radixrt.runtime.grammar.base import EngineRefusal, GrammarError
from radixrt.runtime.grammar.token_texts import WordPieces, readable
from radixrt.runtime.grammar.vocabulary import Vocabulary

PROSE_SLICES = (r"[^\"\\\x00-\x1F\x7F.!?\[\]<>{}']{1,30}", r"[^\"\\\x00-\x1F\x7F.!?\[\]<>{}']+")
"""More sets of tokens whose masks the engine keeps ready: for text that ends at a full stop or a
bracket, a token costs a tenth with them of what it costs without."""

LINE_SLICE = r"[^\n.!?]{1,30}"
"""What the general sets leave of a line: quotes and control characters. A third less for prose."""

_AT_ONCE = 256
"""Tokens that are read before others get the interpreter lock."""

MOST_REBUILD_S = 0.03
"""A matcher that takes longer to build, of a processor, is not built anew by who uses it."""

_LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=30_000,
    max_lexer_states=250_000,
    max_grammar_size=300_000,
    verbose_errors=False,  # else an error quotes the whole grammar
)


class LlguidanceEngine:
    """Builds matchers over the tokens of ``tokenizer.json``.

    ``vocab_size`` is the model's, padding included; ``end_ids`` end a constrained text. Safe for
    use from several threads: building a matcher releases the interpreter lock.
    """

    def __init__(
        self,
        tokenizer_file: Path,
        vocab_size: int,
        end_ids: Sequence[int],
        num_threads: int | None = None,
    ) -> None:
        """``num_threads`` fill masks; None lets the engine choose."""
        text, is_word_pieces = readable(tokenizer_file.read_text(encoding="utf-8"))
        blanks, *general = LLTokenizer.general_slices()
        slices = [
            blanks,
            *PROSE_SLICES,
            *general,
            LINE_SLICE,
        ]  # a token belongs to the first that has it
        source = TokenizerWrapper(WordPieces(text, vocab_size, end_ids)) if is_word_pieces else text
        self._tokenizer = LLTokenizer(
            source, n_vocab=vocab_size, eos_token=list(end_ids), slices=slices
        )
        self._num_threads = num_threads
        self.mask_len = -(-vocab_size // 32)
        self.vocabulary = self._read_vocabulary(vocab_size, end_ids)

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor(self._num_threads)

    def build(self, grammar: str) -> LlguidanceMatcher:
        """Return a matcher at the start of a grammar in the engine's form.

        Raises ``GrammarError``: the engine's constructor never does.
        """
        began = time.thread_time()  # a busy machine finds dear what an idle one does
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise EngineRefusal(matcher.get_error())
        is_cheap = time.thread_time() - began <= MOST_REBUILD_S
        return LlguidanceMatcher(self, grammar, matcher, is_cheap=is_cheap)

    def fill_rows(
        self,
        rows: list[tuple[LlguidanceMatcher, int]],
        bitmasks: NDArray[np.int32],
        note_begun: Callable[[], None] = lambda: None,
    ) -> None:
        """Write the mask of each matcher into its row of ``bitmasks`` int32 [n, ceil(V / 32)],
        in parallel and without the interpreter lock, before which ``note_begun`` is called. Errors
        are found by ``check``."""
        assert bitmasks.shape[1] == self.mask_len
        assert bitmasks.flags["C_CONTIGUOUS"]
        inner = [(matcher.inner, row) for matcher, row in rows]
        note_begun()
        self._executor.unsafe_compute_mask_ptr(
            inner, bitmasks.ctypes.data, bitmasks.strides[0], len(bitmasks)
        )

    def _read_vocabulary(self, vocab_size: int, end_ids: Sequence[int]) -> Vocabulary:
        tokenizer = self._tokenizer
        texts: list[bytes] = []
        control: dict[int, bytes] = {}
        for token_id in range(vocab_size):
            if token_id % _AT_ONCE == 0:
                time.sleep(0)  # let those who wait for the interpreter lock have it
            text = tokenizer.decode_bytes([token_id])
            if tokenizer.is_special_token(token_id):
                control[token_id] = text
                text = b""
            texts.append(text)
        return Vocabulary(
            texts, tokenizer.tokenize_bytes, frozenset(control), control, tuple(end_ids)
        )


class LlguidanceMatcher:
    """One constrained text; see ``Matcher``.

    The engine keeps an error as a state that masks everything but the end; here it is raised. Forks
    of one matcher share a lexer with its budget of states, so what exhausts the budget may be
    another text: a matcher that fails is built anew, alone, and fails for good if it fails again.
    """

    __slots__ = ("_engine", "_grammar", "_is_alone", "_is_cheap", "_token_ids", "inner")

    def __init__(
        self,
        engine: LlguidanceEngine,
        grammar: str,
        inner: LLMatcher,
        token_ids: Sequence[int] = (),
        *,
        is_cheap: bool = True,
    ) -> None:
        """``is_cheap``: it can be built anew when a limit was run into."""
        self._is_cheap = is_cheap
        self._engine = engine
        self._grammar = grammar
        self._token_ids = list(token_ids)
        self._is_alone = False
        self.inner = inner

    def fill_rows(
        self,
        rows: list[tuple[LlguidanceMatcher, int]],
        bitmasks: NDArray[np.int32],
        note_begun: Callable[[], None],
    ) -> None:
        """As ``LlguidanceEngine.fill_rows``, for matchers of the same engine."""
        self._engine.fill_rows(rows, bitmasks, note_begun)

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        """Write the mask into ``bitmask`` int32 [ceil(V / 32)], contiguous."""
        assert bitmask.shape == (self._engine.mask_len,)
        assert bitmask.flags["C_CONTIGUOUS"]
        known = self.known_mask
        if known is not None:
            bitmask[:] = known
        else:
            self.inner.unsafe_compute_mask_ptr(bitmask.ctypes.data, bitmask.nbytes)
            self.learn(bitmask)
        self.check(bitmask)

    def check(self, bitmask: NDArray[np.int32]) -> None:
        """Complete a mask that ``fill_rows`` has just written. Raises if it is an error's that
        cannot be mended."""
        if not self.inner.is_error():
            return
        self._rebuild()
        self.inner.unsafe_compute_mask_ptr(bitmask.ctypes.data, bitmask.nbytes)
        if self.inner.is_error():
            raise GrammarError(_first_lines(self.inner.get_error()))

    def advance(self, token_id: int) -> None:
        """Accept a token that the last mask allowed."""
        if self.inner.is_error():
            self._rebuild()
        if not self.inner.consume_token(token_id):
            raise GrammarError(
                f"token {token_id} is not allowed here: {_first_lines(self.inner.get_error())}"
            )
        self._token_ids.append(token_id)

    def take(self, token_id: int) -> bool:
        """Accept a token that the last mask allowed, if that is all there is to it; else False,
        and ``advance`` has to be asked for what is wrong."""
        if not self.inner.consume_token(token_id):
            return False
        self._token_ids.append(token_id)
        return True

    def allows(self, token_id: int) -> bool:
        """Whether a token can come next."""
        return not self.inner.is_error() and self.inner.validate_tokens([token_id]) == 1

    def try_advance(self, token_ids: list[int]) -> bool:
        """Accept all of ``token_ids``, or none."""
        if self.inner.is_error():
            self._rebuild()
        taken = self.inner.try_consume_tokens(token_ids)
        if taken == len(token_ids) and not self.inner.is_error():
            self._token_ids += token_ids
            return True
        if self.inner.is_error() or not self.inner.rollback(taken):
            self._rebuild()
        return False

    def forced(self) -> list[int]:
        """Return the tokens that are the only possible ones from here."""
        return [] if self.inner.is_error() else list(self.inner.compute_ff_tokens())

    def rollback(self, num_tokens: int) -> None:
        """Take the last ``num_tokens`` accepted tokens back."""
        if num_tokens == 0:
            return
        assert num_tokens <= len(self._token_ids)
        del self._token_ids[-num_tokens:]
        if self.inner.is_error() or not self.inner.rollback(num_tokens):
            self._rebuild()

    def fork(self) -> LlguidanceMatcher:
        """Return an independent matcher in the same state."""
        if self.inner.is_error():
            self._rebuild()
        return self._like(self._with(self.inner.deep_copy(), self._token_ids))

    def restarted(self) -> LlguidanceMatcher:
        """Return an independent matcher at the beginning."""
        inner = self.inner.deep_copy()
        if not inner.reset():
            inner = self._engine.build(self._grammar).inner
        return self._like(self._with(inner, ()))

    def _with(self, inner: LLMatcher, token_ids: Sequence[int]) -> LlguidanceMatcher:
        return LlguidanceMatcher(
            self._engine, self._grammar, inner, token_ids, is_cheap=self._is_cheap
        )

    def _like(self, matcher: LlguidanceMatcher) -> LlguidanceMatcher:
        """Return a matcher of this one's kind out of one that has accepted a part of its tokens."""
        return matcher

    @property
    def is_accepting(self) -> bool:
        """Whether the text so far is complete."""
        return not self.inner.is_error() and bool(self.inner.is_accepting())

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end token can follow."""
        return not self.inner.is_error() and bool(self.inner.is_stopped())

    @property
    def known_mask(self) -> NDArray[np.int32] | None:
        """What ``fill_rows`` would write, if that is known without it; not to be changed."""
        return None

    def learn(self, bitmask: NDArray[np.int32]) -> None:
        """Note what ``fill_rows`` has written, for ``known_mask`` of this and other texts."""

    @property
    def is_mask_complete(self) -> bool:
        """Whether ``check`` has nothing to add to a mask of ``fill_rows``."""
        return not self.inner.is_error()

    @property
    def is_broken(self) -> bool:
        """Whether it, or a text that it shares its lexer with, ran into a limit."""
        return bool(self.inner.is_error())

    def _rebuild(self) -> None:
        reason = _first_lines(self.inner.get_error())
        if (self._is_alone or not self._is_cheap) and self.inner.is_error():
            raise GrammarError(reason)
        self.inner = self._engine.build(self._grammar).inner
        self._is_alone = True
        if self._token_ids and not self.inner.consume_tokens(self._token_ids):
            raise GrammarError(_first_lines(self.inner.get_error()) or reason)


def json_grammar(schema: str, *, lenient: bool, spaced: bool = False) -> str:
    """Return the engine's form of a JSON schema; ``spaced`` puts a blank after commas and colons.
    Raises ``GrammarError`` for text that is no JSON object."""
    try:
        overrides: Any = {"lenient": lenient, **json_blanks(spaced)}
        return LLMatcher.grammar_from_json_schema(schema, overrides=overrides)
    except ValueError as error:
        raise EngineRefusal(str(error)) from None


def json_blanks(spaced: bool) -> dict[str, Any]:
    """Return the engine's options for the blanks in JSON: none, or those of Python's ``json``."""
    separators = {"item_separator": ", ", "key_separator": ": "}
    return {"whitespace_flexible": False, **(separators if spaced else {})}


def regex_grammar(pattern: str) -> str:
    """Return the engine's form of a regular expression."""
    return LLMatcher.grammar_from_regex(pattern)


def lark_grammar(text: str) -> str:
    """Return the engine's form of a Lark grammar."""
    return LLMatcher.grammar_from_lark(text)


def warnings_of(matcher: LlguidanceMatcher) -> list[str]:
    """Return what the engine leaves out of a lenient schema, in its words."""
    return list(matcher.inner.get_grammar_warnings())


def _first_lines(message: str, limit: int = 400) -> str:
    return message if len(message) <= limit else message[: limit - 1] + "…"
