"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``, in vLLM's shapes."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from radixrt.gateway.answers import JsonResponse
from radixrt.gateway.errors import invalid
from radixrt.gateway.messages import chat_part, checked_messages
from radixrt.gateway.openapi import described
from radixrt.gateway.service import Service
from radixrt.gateway.tools import tool_use
from radixrt.protocol import DescribeTokenizer, Detokenize, Part, Tokenize


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of ``/tokenize``: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool | None = None
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of ``/detokenize``."""

    model: str | None = None
    tokens: list[int]


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["tokens"])

    @routes.post("/tokenize", **described(TokenizeRequest, "Tokens of a text or a conversation."))
    async def tokenize(request: Request) -> Response:
        body = await service.bodies.read(request, TokenizeRequest)
        service.model_of(body.model)
        part = _part_of(body)
        with_start = body.add_special_tokens is not False
        data = await service.link.ask(lambda call: Tokenize(call, (part,), with_start))
        return JsonResponse(
            {
                "count": len(data["token_ids"]),
                "max_model_len": data["max_context"],
                "tokens": data["token_ids"],
                "token_strs": data["tokens"] if body.return_token_strs else None,
            }
        )

    @routes.post("/detokenize", **described(DetokenizeRequest, "The text of tokens."))
    async def detokenize(request: Request) -> Response:
        body = await service.bodies.read(request, DetokenizeRequest)
        service.model_of(body.model)
        data = await service.link.ask(lambda call: Detokenize(call, tuple(body.tokens)))
        return JsonResponse({"prompt": data["text"]})

    @routes.get("/tokenizer_info", **described(None, "What the tokenizer is."))
    async def tokenizer_info() -> Response:
        data = await service.link.ask(DescribeTokenizer)
        return JsonResponse(
            {
                **data["config"],
                **data["special_tokens"],
                "tokenizer_class": data["tokenizer_class"],
                "vocab_size": data["vocab_size"],
                "model_max_length": data["max_context"],
                "chat_template": data["chat_template"],
                "special_token_ids": data["special_token_ids"],
                "additional_special_tokens": list(data["added_special_tokens"]),
            }
        )

    return routes


def _part_of(body: TokenizeRequest) -> Part:
    if (body.prompt is None) == (body.messages is None):
        raise invalid("prompt", "give either prompt or messages")
    if body.prompt is not None:
        return Part("markup", body.prompt)
    assert body.messages is not None
    tools = tool_use(body.tools, None, None)
    return chat_part(
        checked_messages(body.messages),
        None if tools is None else tools.tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        template_kwargs=body.chat_template_kwargs,
    )
