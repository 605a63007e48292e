"""Tokens of every kind of tokenizer stand for the bytes that its own decoder makes of them."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import regex
from grammar_walks import session_of, walk
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from radixrt.runtime.grammar.llguidance import LlguidanceEngine, regex_grammar
from radixrt.runtime.grammar.vocabulary import allowed_ids
from radixrt.runtime.wire import GrammarSpec

PADDING = 7
"""Logits of a model that belong to no token."""

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = [chr(code) for code in range(33, 127)]


def word_pieces() -> Tokenizer:
    words = ["[UNK]", "[SEP]", "[CLS]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    words += ["hello", "##lo", "wor", "##ld", "yes", "##es", "ab", "##ab"]
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    tokenizer.add_special_tokens(["[UNK]", "[SEP]", "[CLS]"])
    return tokenizer


def sentence_pieces() -> Tokenizer:
    """As Llama 2's: BPE with a mark for blanks and a token for every byte."""
    names = ["<unk>", "</s>", "<s>", *BYTES, "▁", *LETTERS]
    vocabulary = {name: i for i, name in enumerate(names)}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("▁", "w")]
    merges += [("▁", "▁"), ("a", "b"), ("y", "es"), ("e", "s")]
    for left, right in sorted(merges, key=lambda pair: len("".join(pair))):
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            [pair for pair in merges if pair != ("y", "es")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>", "<s>"])
    return tokenizer


def unigram_pieces() -> Tokenizer:
    """As T5's and Gemma's kind: a unigram model over marked words."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<s>", 0.0)]
    pieces += [(name, -10.0) for name in BYTES] + [(name, -5.0) for name in LETTERS]
    pieces += [("▁", -3.0), ("▁hello", -1.0), ("hello", -1.5), ("▁w", -2.0), ("or", -2.0)]
    pieces += [("ld", -2.0), ("yes", -2.0), ("ab", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="first")]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>", "<s>"])
    return tokenizer


@pytest.fixture(
    scope="module",
    params=[word_pieces, sentence_pieces, unigram_pieces],
    ids=lambda make: make.__name__,
)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, LlguidanceEngine]:
    tokenizer: Tokenizer = request.param()
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    return tokenizer, LlguidanceEngine(Path(file), size + PADDING, [1], 1)


def text_after(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """What the tokenizer's decoder makes of tokens in the middle of a text."""
    anchor = tokenizer.token_to_id("x")
    before = len(tokenizer.decode([anchor]))
    return tokenizer.decode([anchor, *token_ids])[before:]


def test_every_token_has_the_bytes_that_its_decoder_spells(
    made: tuple[Tokenizer, LlguidanceEngine],
) -> None:
    tokenizer, engine = made
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    never = {f"<0x{byte:02X}>" for byte in range(0xF5, 0x100)}  # no text has these bytes
    usable = [i for i in range(3, size) if tokenizer.id_to_token(i) not in never]
    random = Random(0)
    for _ in range(500):
        token_ids = random.choices(usable, k=random.randrange(1, 9))
        spelled = engine.vocabulary.decode(token_ids)
        try:
            text = spelled.decode()
        except UnicodeDecodeError:
            continue  # bytes that are no text by themselves
        assert text == text_after(tokenizer, token_ids)
    assert all(engine.vocabulary.texts[token_id] for token_id in usable)


def test_control_tokens_and_padding_spell_nothing_and_are_never_allowed(
    made: tuple[Tokenizer, LlguidanceEngine],
) -> None:
    tokenizer, engine = made
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    vocabulary = engine.vocabulary
    assert vocabulary.control_ids >= {0, 1, 2}
    assert [vocabulary.texts[i] for i in (0, 1, 2)] == [b""] * 3
    mask = np.zeros(engine.mask_len, np.int32)
    matcher = engine.build(regex_grammar("(?s:.*)"))
    matcher.fill(mask)
    allowed = set(allowed_ids(mask, size + PADDING).tolist())
    assert allowed & {0, 2} == set()
    assert 1 in allowed  # the end: the text so far is complete
    assert max(allowed) < size
    assert len(allowed) > size - 256 - 10


@pytest.mark.parametrize(
    "pattern", [r" ?(yes|no|hello)( world)?", r"[a-h]{2,12}", r"[ -~]{5,20}!", r"\d{3}-[ab]*c"]
)
def test_what_is_generated_is_text_that_the_pattern_matches(
    made: tuple[Tokenizer, LlguidanceEngine], pattern: str
) -> None:
    tokenizer, engine = made
    for seed in range(8):
        session = session_of(engine, GrammarSpec("regex", pattern, "valid"), max_tokens=60)
        walk(session, np.random.default_rng(seed))
        token_ids = [i for i in session.written.token_ids if i != 1]
        text = text_after(tokenizer, token_ids)
        assert text == session.written.bound_text
        assert regex.fullmatch(pattern, text)


def test_forced_tokens_are_those_that_the_tokenizer_makes_of_the_text(
    made: tuple[Tokenizer, LlguidanceEngine],
) -> None:
    tokenizer, engine = made
    matcher = engine.build(regex_grammar(" hello hello(a|b)"))
    forced = matcher.forced()
    canonical = tokenizer.encode("x hello hello", add_special_tokens=False).ids
    assert forced
    spelled = engine.vocabulary.decode(forced)
    assert b" hello hello".startswith(spelled)
    assert canonical[-2:][: len(forced)] == forced
