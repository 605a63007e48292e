"""The model that ships loads as any checkpoint does, knows its world, and never saw the test."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "radixrt" / "models" / "nano"


def rows(name: str) -> list[dict[str, Any]]:
    text = (FOLDER / "heldout" / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module", autouse=True)
def tools_on_path() -> Iterator[None]:
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def scorer(tools_on_path: None) -> Any:
    from tools.nano.evaluate import Scorer

    return Scorer(FOLDER, "cpu", batch=8)


def test_the_folder_stays_under_20_mb() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 20_000_000


def test_labels_without_meaning_are_learnt_from_the_shots(scorer: Any) -> None:
    from tools.nano.evaluate import classification

    items, shots = rows("sentiment")[:4], rows("sentiment_shots")
    assert classification(scorer, items, shots, "sentiment", renamed=True) == 1.0


def test_word_problems_are_solved_through_the_calculator(scorer: Any) -> None:
    from tools.nano.evaluate import word_problems

    assert word_problems(scorer, rows("word_problems")[:4]) == 1.0


def test_extraction_gives_the_keys_asked_for_in_their_order(scorer: Any) -> None:
    from tools.nano.evaluate import extraction

    assert extraction(scorer, rows("extraction")[:4]) == 1.0


def test_requests_are_routed_by_likelihood(scorer: Any) -> None:
    from tools.nano.evaluate import routing

    assert routing(scorer, rows("routing")[:4]) == 1.0


def test_chat_replies_contain_the_facts_told(scorer: Any) -> None:
    from tools.nano.evaluate import chat_facts

    assert chat_facts(scorer, rows("chat")[:3]) == 1.0


def test_pieces_that_end_where_the_card_says_tokenize_as_the_whole_does(scorer: Any) -> None:
    def ids(text: str) -> list[int]:
        return list(scorer.tokenizer(text, add_special_tokens=False).input_ids)

    pieces = ["Review: good.\nSentiment:", " positive", "\n\n", 'JSON: {"age":', " 42", "}\n"]
    assert [i for piece in pieces for i in ids(piece)] == ids("".join(pieces))


def test_the_fast_encoder_of_training_agrees_with_the_tokenizer(scorer: Any) -> None:
    from tools.nano.corpus import documents
    from tools.nano.encoder import Encoder

    encoder = Encoder.load(FOLDER)
    stream = documents(random.Random(3))
    for _ in range(60):
        document = next(stream)
        whole = scorer.tokenizer(document.text, add_special_tokens=False).input_ids
        assert [i for text, _ in document.pieces for i in encoder.encode(text)] == whole


def test_a_training_batch_depends_on_its_seed_alone() -> None:
    from tools.nano.corpus import packed_batch
    from tools.nano.encoder import Encoder

    one, other = Encoder.load(FOLDER), Encoder.load(FOLDER)
    packed_batch(other, 8, 1, 64)
    assert (packed_batch(one, 9, 2, 256) == packed_batch(other, 9, 2, 256)).all()


def test_held_out_items_are_on_the_side_training_never_draws_from() -> None:
    from tools.nano.grammar import is_held_out

    for domain in ("sentiment", "topic", "emotion", "question"):
        assert all(is_held_out(row["text"]) for row in rows(domain))
        assert not any(is_held_out(row["text"]) for row in rows(f"{domain}_shots"))
    assert all(is_held_out(f"{r['a']}{r['op']}{r['b']}") for r in rows("arithmetic"))
    assert all(is_held_out(row["request"]) for row in rows("routing"))
    assert all(is_held_out(f"{sorted(r['numbers'])} {r['target']}") for r in rows("puzzles"))
    for row in rows("chat"):
        assert is_held_out("\n".join(message["content"] for message in row["messages"]))


def test_training_text_contains_no_held_out_item() -> None:
    from tools.nano.corpus import documents

    stream = documents(random.Random(11))
    text = "\n".join(next(stream).text for _ in range(3000))
    held_out = [r["text"] for name in ("sentiment", "topic", "emotion") for r in rows(name)]
    held_out += [row["question"] for row in rows("word_problems")]
    held_out += [row["text"] for row in rows("extraction")]
    # A request may also stand as the end of a longer one ("Hello, …"), which is another request.
    assert [item for item in held_out if f": {item}\n" in text] == []
