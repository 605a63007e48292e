"""``/v1/completions``, ``/tokenize`` and their relatives on the shipped model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from gateway_process import Gateway, Nano
from runtime_process import ask, hello

from radixrt.protocol import Append, Finished, Generate, Open, Part, Sampling
from radixrt.transport import ZmqTransport

COMPLETIONS = "/v1/completions"


def ids_of(api: Gateway, text: str) -> list[int]:
    tokens: list[int] = api.ok("/tokenize", prompt=text)["tokens"]
    return tokens


def texts_of(completion: dict[str, Any]) -> list[str]:
    assert [c["index"] for c in completion["choices"]] == list(range(len(completion["choices"])))
    return [choice["text"] for choice in completion["choices"]]


def test_http_says_what_the_runtime_says(api: Gateway, nano: Nano) -> None:
    over_http = api.ok(COMPLETIONS, prompt="One two", temperature=0, max_tokens=8)
    transport = ZmqTransport(nano.endpoint)
    try:
        hello(transport)
        generate = Generate(1, 1, Sampling(max_tokens=8, temperature=0))
        messages = [Open(1), Append(1, (Part("text", "One two"),)), generate]
        (finished,) = ask(transport, messages, 1)
    finally:
        transport.close()
    assert isinstance(finished, Finished)
    assert texts_of(over_http) == [finished.outputs[0].text]
    assert over_http["usage"]["completion_tokens"] == finished.usage.completion_tokens


def test_a_prompt_in_every_form(api: Gateway) -> None:
    first, second = "One two", "The quick brown"
    a, b = ids_of(api, first), ids_of(api, second)
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 4}
    alone = [texts_of(api.ok(COMPLETIONS, prompt=p, **fields))[0] for p in (first, second)]
    for prompt in ([first, second], [a, b]):
        assert texts_of(api.ok(COMPLETIONS, prompt=prompt, **fields)) == alone
    for prompt in (first, [first], a, [a]):
        assert texts_of(api.ok(COMPLETIONS, prompt=prompt, **fields)) == alone[:1]
    doubled = texts_of(api.ok(COMPLETIONS, prompt=[first, second], n=2, **fields))
    assert doubled == [alone[0], alone[0], alone[1], alone[1]]


def test_special_tokens_in_a_prompt_are_meant(api: Gateway) -> None:
    assert len(ids_of(api, "<|end|>")) == 1
    template = "<|user|>\nHi<|end|>\n<|assistant|>\n"
    chat = api.ok("/tokenize", messages=[{"role": "user", "content": "Hi"}])
    assert ids_of(api, template) == chat["tokens"]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_prompt_is_scored_token_by_token(api: Gateway, max_tokens: int) -> None:
    """As lm-eval asks: the log probability of a continuation is the sum over its tokens."""
    prompt = ids_of(api, "The answer to the question is yes")
    completion = api.ok(
        COMPLETIONS, prompt=[prompt, prompt[:4]], max_tokens=max_tokens, echo=True, logprobs=1,
        temperature=0,
    )  # fmt: skip
    for choice, tokens in zip(completion["choices"], (prompt, prompt[:4]), strict=True):
        logprobs = choice["logprobs"]
        lengths = {name: len(values) for name, values in logprobs.items()}
        assert set(lengths.values()) == {len(tokens) + max_tokens}
        assert logprobs["token_logprobs"][0] is None
        assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
        for value, top in zip(
            logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
        ):
            assert value <= max(top.values())
        assert (
            "".join(logprobs["tokens"][: len(tokens)])
            == api.ok("/detokenize", tokens=tokens)["prompt"]
        )
    # The score of a prefix' token does not depend on what comes after it.
    longer, shorter = (c["logprobs"]["token_logprobs"] for c in completion["choices"])
    assert longer[1:4] == pytest.approx(shorter[1:4], abs=1e-3)
    # What is generated greedily is what scores best.
    if max_tokens:
        last = completion["choices"][0]["logprobs"]
        assert last["token_logprobs"][-1] == max(last["top_logprobs"][-1].values())


def test_a_stream_of_several_prompts_is_the_whole_answer(api: Gateway) -> None:
    fields: dict[str, Any] = {
        "prompt": ["One two", ids_of(api, "The quick")], "max_tokens": 6, "seed": 5, "n": 2,
        "echo": True, "logprobs": 2,
    }  # fmt: skip
    whole = api.ok(COMPLETIONS, **fields)
    texts, tokens = [""] * 4, [list[str]() for _ in range(4)]
    *events, usage = api.events(COMPLETIONS, stream_options={"include_usage": True}, **fields)
    for event in events:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"] is None:
            tokens[choice["index"]] += choice["logprobs"]["tokens"]
    assert texts == texts_of(whole)
    for choice, streamed in zip(whole["choices"], tokens, strict=True):
        assert choice["logprobs"]["tokens"][-len(streamed) :] == streamed
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**63]}, "prompt"),
        ({"prompt": ["a"] * 2000}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "logprobs": 1000}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
    ],
)
def test_what_cannot_be_done_is_refused(api: Gateway, fields: dict[str, Any], param: str) -> None:
    assert api.refused(COMPLETIONS, **fields)["param"] == param


def test_tokens_and_back(api: Gateway) -> None:
    reply = api.ok("/tokenize", prompt="Größe 12", return_token_strs=True)
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    assert api.ok("/detokenize", tokens=reply["tokens"])["prompt"] == "Größe 12"
    assert api.refused("/detokenize", tokens=[10**6])["code"] == "invalid_value"
    assert api.refused("/tokenize")["param"] == "prompt"
    assert api.refused("/tokenize", prompt="a", messages=[])["param"] == "prompt"


def test_the_tokenizer_is_described_as_lm_eval_wants_it(api: Gateway) -> None:
    info = api.http.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|endoftext|>"
    assert "add_generation_prompt" in info["chat_template"]
    assert info["tokenizer_class"]


def test_models(api: Gateway) -> None:
    (model,) = api.http.get("/v1/models").json()["data"]
    assert model["object"] == "model"
    assert model["owned_by"] == "radixrt"
    assert api.http.get(f"/v1/models/{model['id']}").json() == model
    assert api.http.get("/v1/models/other").status_code == 404


def test_the_description_of_the_server_covers_its_routes(api: Gateway) -> None:
    description = api.http.get("/openapi.json").json()
    chat = description["paths"]["/v1/chat/completions"]["post"]
    body = chat["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["messages"]
    assert {"temperature", "structured_outputs", "tools"} <= body["properties"].keys()
    assert "$ref" not in json.dumps(body)


def test_the_cache_can_be_emptied(api: Gateway) -> None:
    prompt = "Something that is long enough to be found again in the cache of the runtime. " * 2

    def cached() -> int:
        usage = api.ok(COMPLETIONS, prompt=prompt, max_tokens=1)["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    cached()
    assert cached() > 16
    assert api.post("/flush_cache").status_code == 200
    assert cached() == 0


def test_a_salt_has_a_cache_of_its_own(api: Gateway) -> None:
    prompt = "A prefix that everybody shares unless they have asked for a cache of their own. " * 2

    def cached(**fields: Any) -> int:
        usage = api.ok(COMPLETIONS, prompt=prompt, max_tokens=1, **fields)["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    cached()
    assert cached() > 16
    assert cached(cache_salt="mine") == 0
    assert cached(cache_salt="mine") > 16
    assert cached(cache_salt="yours") == 0


PAGE = Path(__file__).parent.parent.parent / "docs" / "http.md"
EXAMPLE = re.compile(r"curl http://127\.0\.0\.1:8000(\S+) -H '[^']+' -d '([^']+)'")


@pytest.mark.parametrize(("path", "body"), EXAMPLE.findall(PAGE.read_text(encoding="utf-8")))
def test_the_examples_of_the_page_are_answered(api: Gateway, path: str, body: str) -> None:
    fields = json.loads(body)
    fields.setdefault("max_tokens", 60)
    assert api.ok(path, **fields)["choices"]
