"""Reasoning sections: what a template says of them, and their tags in a text."""

from __future__ import annotations

from pathlib import Path

import pytest
from frontend_harness import Harness, text
from tiny_tokenizer import CHAT_TEMPLATE, SPECIAL, byte_level_tokenizer, write_model_directory
from tokenizers import AddedToken

from radixrt.protocol import DescribeTokenizer, Reply
from radixrt.runtime.frontend.reasoning import reasoning_of_template

THINKS = CHAT_TEMPLATE + "{# </think> #}"


@pytest.fixture(params=[True, False], ids=["control tokens", "ordinary tokens"])
def thinking(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    """A frontend for a model whose tags are tokens."""
    tokenizer = byte_level_tokenizer()
    tags = [AddedToken(tag, special=request.param) for tag in ("<think>", "</think>")]
    (tokenizer.add_special_tokens if request.param else tokenizer.add_tokens)(tags)
    return Harness(write_model_directory(tmp_path, tokenizer=tokenizer, chat_template=THINKS))


@pytest.mark.parametrize("stream", [True, False])
def test_the_tags_are_text_whatever_kind_of_tokens_they_are(
    thinking: Harness, stream: bool
) -> None:
    client = thinking.client()
    client.open(1, text("Is it?"))
    opening, closing = (
        int(thinking.tokenizer.encode(tag, markup=True)[0]) for tag in ("<think>", "</think>")
    )
    thinking.says(opening, "the fox", closing, "yes")
    answer = client.finish(max_tokens=40, stream=stream)
    assert answer.outputs[0].text == "<think>the fox</think>yes"


def test_other_control_tokens_are_no_text(thinking: Harness) -> None:
    client = thinking.client()
    client.open(1, text("Is it?"))
    thinking.says("yes", SPECIAL.index("<|user|>"), "no")
    assert client.finish(max_tokens=40).outputs[0].text == "yesno"


def test_the_tags_and_the_token_that_closes_are_told(thinking: Harness) -> None:
    client = thinking.client()
    client.send(DescribeTokenizer(7))
    told = client.answer(7, Reply).data["reasoning"]
    closing = thinking.tokenizer.encode("</think>", markup=True).tolist()
    assert told == {"opening": "<think>", "closing": "</think>", "closing_id": closing[0]}


def test_a_template_without_the_tags_knows_no_reasoning(harness: Harness) -> None:
    assert reasoning_of_template(CHAT_TEMPLATE) is None
    assert reasoning_of_template(None) is None
    client = harness.client()
    client.send(DescribeTokenizer(7))
    assert client.answer(7, Reply).data["reasoning"] is None
