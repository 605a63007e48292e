"""Tokenizing in pieces, detokenizing token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import byte_level_tokenizer, sentencepiece_like_tokenizer, write_model_directory
from tokenizers import processors

from radixrt.errors import ModelError
from radixrt.runtime.tokenizer import BlockDetokenizer, Detokenizer, Tokenizer


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_model_directory(tmp_path_factory.mktemp("byte-level")))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("sentencepiece")
    return Tokenizer(write_model_directory(path, tokenizer=sentencepiece_like_tokenizer()))


texts = st.text(alphabet=st.sampled_from("abc STOP.\né漢字🎉ünïx "), max_size=40)


@settings(max_examples=100, deadline=None)
@given(text=texts, context=texts)
def test_token_by_token_gives_the_text_back(byte_level: Tokenizer, text: str, context: str) -> None:
    detokenizer = Detokenizer(byte_level, byte_level.encode(context).tolist()[-6:])
    for token_id in byte_level.encode(text).tolist():
        before = detokenizer.text
        detokenizer.push(token_id)
        assert detokenizer.text.startswith(before)
        assert "�" not in detokenizer.text
    assert detokenizer.text == text


@settings(max_examples=300, deadline=None)
@given(data=st.data(), is_byte_level=st.booleans())
def test_blocks_of_tokens_give_the_text_that_they_give_one_by_one(
    byte_level: Tokenizer, sentencepiece: Tokenizer, data: st.DataObject, is_byte_level: bool
) -> None:
    tokenizer = byte_level if is_byte_level else sentencepiece
    token_ids = st.integers(0, tokenizer.vocab_size - 1)
    if data.draw(st.booleans()):
        ids = tokenizer.encode(data.draw(texts) + data.draw(texts)).tolist()
    else:
        ids = data.draw(st.lists(token_ids, max_size=40))
    context = data.draw(st.lists(token_ids, max_size=6))
    by_token, by_block = Detokenizer(tokenizer, context), BlockDetokenizer(tokenizer, context)
    for token_id in ids:
        by_token.push(token_id)
    while ids:
        size = data.draw(st.integers(1, len(ids)))
        by_block.extend(ids[:size])
        ids = ids[size:]
        if data.draw(st.booleans()):
            assert by_token.text.startswith(by_block.text)
    assert by_block.text == by_token.text


def test_text_goes_on_behind_a_character_that_the_context_began(sentencepiece: Tokenizer) -> None:
    first, *rest = [sentencepiece._id_of(f"<0x{byte:02X}>") for byte in "\x80\0a".encode()]
    detokenizer = Detokenizer(sentencepiece, [first])
    for token_id in rest:
        detokenizer.push(token_id)
    assert detokenizer.text == "\x80\0a"


@settings(max_examples=100, deadline=None)
@given(text=texts, data=st.data())
def test_the_tokens_within_a_length_spell_no_more_than_it(
    byte_level: Tokenizer, text: str, data: st.DataObject
) -> None:
    token_ids = byte_level.encode(text).tolist()
    detokenizer = Detokenizer(byte_level, [])
    for token_id in token_ids:
        detokenizer.push(token_id)
    length = data.draw(st.integers(0, len(text)))
    kept = detokenizer.num_tokens_within(length)
    spelled = byte_level.decode(token_ids[:kept])
    assert text.startswith(spelled)
    assert len(spelled) <= length
    if kept < len(token_ids):
        assert (
            detokenizer.ends[kept] > length
            or byte_level.decode(token_ids[: kept + 1]) != (text[:length])
        )


def test_bytes_that_are_no_text_do_not_pile_up(byte_level: Tokenizer) -> None:
    stray = byte_level.encode("é").tolist()[-1]
    detokenizer = Detokenizer(byte_level, [])
    for _ in range(100):
        detokenizer.push(stray)
    detokenizer.push(byte_level.encode("a").tolist()[0])
    assert len(detokenizer._window) < 40
    assert detokenizer.text.endswith("a")


def test_a_leading_space_belongs_to_the_start_of_a_branch_only(sentencepiece: Tokenizer) -> None:
    start = sentencepiece.encode("fox", at_start=True).tolist()
    inner = sentencepiece.encode("fox").tolist()
    assert start != inner
    assert sentencepiece.encode(" fox").tolist() == start


def test_the_first_space_of_generated_text_is_kept(sentencepiece: Tokenizer) -> None:
    prompt = sentencepiece.encode("The quick", at_start=True).tolist()
    detokenizer = Detokenizer(sentencepiece, prompt)
    for token_id in sentencepiece.encode(" brown fox").tolist():
        detokenizer.push(token_id)
    assert detokenizer.text == " brown fox"


def test_characters_spelled_in_byte_tokens_arrive_whole(sentencepiece: Tokenizer) -> None:
    prompt = sentencepiece.encode("The", at_start=True).tolist()
    detokenizer = Detokenizer(sentencepiece, prompt)
    seen = []
    for token_id in sentencepiece.encode(" 🎉 é!").tolist():
        detokenizer.push(token_id)
        seen.append(detokenizer.text)
    assert seen[-1] == " 🎉 é!"
    assert all("�" not in text for text in seen)


def test_special_tokens_come_from_markup_only(byte_level: Tokenizer) -> None:
    assert len(byte_level.encode("<|end|>", markup=True)) == 1
    assert len(byte_level.encode("<|end|>")) > 1
    assert byte_level.decode(byte_level.encode("<|end|>").tolist()) == "<|end|>"


def test_the_start_token_is_read_from_the_config_or_from_the_tokenizer(tmp_path: Path) -> None:
    assert len(Tokenizer(write_model_directory(tmp_path / "a", add_bos=True)).start_ids) == 1
    without = Tokenizer(write_model_directory(tmp_path / "b", add_bos=False))
    assert len(without.start_ids) == 0
    assert without.fallback_start_ids.tolist() == [0]
    tokenizer = byte_level_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
    )
    path = write_model_directory(tmp_path / "c", tokenizer=tokenizer, add_bos=None)
    assert Tokenizer(path).start_ids.tolist() == [0]


def test_end_tokens_are_gathered_from_all_files(tmp_path: Path) -> None:
    path = write_model_directory(tmp_path)
    (path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert Tokenizer(path).end_ids == {1, 7, 8, 9}


@pytest.mark.parametrize("content", [None, "{", "[]", '{"version": "1.0", "model": {}}'])
def test_a_directory_without_a_usable_tokenizer_is_an_error(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
