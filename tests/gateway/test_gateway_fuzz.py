"""Whatever is in a body: an answer, or an error of the request in OpenAI's shape."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_process import Gateway, error_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radixrt.gateway.chat_request import ChatRequest
from radixrt.gateway.completions import CompletionRequest
from radixrt.gateway.responses import ResponsesRequest
from radixrt.gateway.tokens import DetokenizeRequest, TokenizeRequest

texts = st.text(st.characters(codec="utf-8"), max_size=8)
words = st.sampled_from(
    ["type", "function", "name", "json_schema", "schema", "json", "regex", "text", "role", "user",
     "content", "assistant", "tool", "auto", "required", "object", "a", "$ref", "parameters"]
)  # fmt: skip
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64) + 1, 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | words, inner, max_size=3),
    max_leaves=6,
)

ROUTES: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, {"messages": [{"role": "user", "content": "x"}]}),
    "/v1/completions": (CompletionRequest, {"prompt": "x"}),
    "/v1/responses": (ResponsesRequest, {"input": "x"}),
    "/tokenize": (TokenizeRequest, {"prompt": "x"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [1]}),
}

SHORT = {"max_tokens": 2, "max_completion_tokens": 2, "max_output_tokens": 2, "n": 1}
"""Keeps what is generated short; what is wrong with these is tested by name elsewhere."""


@pytest.mark.parametrize("path", ROUTES)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_body_makes_the_server_fail(api: Gateway, path: str, data: st.DataObject) -> None:
    kind, valid = ROUTES[path]
    names = st.sampled_from(sorted(set(kind.__struct_fields__) - SHORT.keys()))
    body = data.draw(st.dictionaries(names, json_values, min_size=1, max_size=3))
    answer = api.http.post(path, json={**valid, **body, **SHORT})
    assert answer.status_code in (200, 400, 404), (body, answer.text)
    if answer.status_code != 200:
        error_of(answer)
