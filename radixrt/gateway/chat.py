"""``/v1/chat/completions``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from radixrt.gateway.answers import JsonResponse, event_stream, unless_hung_up
from radixrt.gateway.chat_answer import ChatCall, completion
from radixrt.gateway.chat_events import ChatWriter
from radixrt.gateway.chat_request import ChatRequest
from radixrt.gateway.constraints import constraint_of
from radixrt.gateway.errors import invalid
from radixrt.gateway.logprobs import MAX_TOP
from radixrt.gateway.messages import chat_part, checked_messages
from radixrt.gateway.openapi import described
from radixrt.gateway.reasoning import Reasoning
from radixrt.gateway.service import Service, now, request_id_of
from radixrt.gateway.tools import tool_use


def router(service: Service) -> APIRouter:
    """Return the route."""
    routes = APIRouter(tags=["generation"])

    @routes.post("/v1/chat/completions", **described(ChatRequest, "Answer a conversation."))
    async def chat_completions(request: Request) -> Response:
        body = await service.bodies.read(request, ChatRequest)
        messages = checked_messages(body.messages)
        reasoning = await service.reasoning.of(
            messages,
            body.chat_template_kwargs,
            opens_answer=body.opens_answer,
            is_continued=body.continue_final_message,
        )
        call = _prepare(service, request, body, reasoning)
        part = chat_part(
            messages,
            None if call.tools is None else call.tools.tools,
            add_generation_prompt=body.opens_answer,
            continue_final_message=body.continue_final_message,
            template_kwargs=body.chat_template_kwargs,
        )
        exchange = service.begin(
            request,
            [(part,)],
            call.sampling,
            call.constraint,
            stream=body.stream,
            cache_salt=body.cache_salt,
        )
        if body.stream:
            return await event_stream(request, exchange, ChatWriter(call))
        finished = await unless_hung_up(request, exchange, exchange.outcomes)
        return JsonResponse(completion(call, finished[0]))

    return routes


def _prepare(
    service: Service, request: Request, body: ChatRequest, reasoning: Reasoning | None
) -> ChatCall:
    model = service.model_of(body.model)
    tools = tool_use(
        body.tools, body.tool_choice, body.parallel_tool_calls, body.functions, body.function_call
    )
    constraint = constraint_of(body)
    if tools is not None:
        constraint = tools.constraint(constraint)
    if reasoning is not None and constraint is not None and body.constraint is None:
        is_free_first = tools is not None and tools.choice == "auto"
        constraint = reasoning.unbound(constraint, is_free_first=is_free_first)
    if body.modalities is not None and body.modalities != ["text"]:
        raise invalid("modalities", "the model writes text; use ['text']", "unsupported")
    top = None
    if body.logprobs:
        top = body.top_logprobs or 0
    elif body.top_logprobs:
        raise invalid("top_logprobs", "set logprobs to true with it")
    if top is not None and not 0 <= top <= MAX_TOP:
        raise invalid("top_logprobs", f"use 0 to {MAX_TOP}")
    limit = body.max_completion_tokens
    max_tokens = limit if limit is not None else body.max_tokens
    if max_tokens is not None and max_tokens < 1:
        name = "max_tokens" if limit is None else "max_completion_tokens"
        raise invalid(name, f"{max_tokens}: use an integer of at least 1")
    return ChatCall(
        id=f"chatcmpl-{request_id_of(request)}",
        created=now(),
        model=model,
        request=body,
        sampling=body.sampling(max_tokens, top_logprobs=top, prompt_logprobs=False),
        constraint=constraint,
        tools=tools,
        reasoning=None if body.separate_reasoning is False else reasoning,
        style=service.link.tokenizer.get("tool_format", {}),
    )
