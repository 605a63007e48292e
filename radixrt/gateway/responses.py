"""``/v1/responses``."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from radixrt.gateway.answers import JsonResponse, event_stream, unless_hung_up
from radixrt.gateway.constraints import constraint_of
from radixrt.gateway.errors import ApiError, invalid
from radixrt.gateway.fields import SamplingFields
from radixrt.gateway.logprobs import MAX_TOP
from radixrt.gateway.messages import chat_part, checked_messages
from radixrt.gateway.openapi import described
from radixrt.gateway.reasoning import Reasoning
from radixrt.gateway.response_events import ResponseWriter
from radixrt.gateway.response_items import messages_of
from radixrt.gateway.response_object import ResponseCall, finished_response
from radixrt.gateway.response_store import ResponseStore, Stored
from radixrt.gateway.service import Service, client_of, now
from radixrt.gateway.tools import ToolUse, tool_use
from radixrt.protocol import Finished

LOGPROBS = "message.output_text.logprobs"
"""What ``include`` names to get log probabilities."""

_INCLUDED = frozenset({LOGPROBS, "reasoning.encrypted_content"})


class ResponsesRequest(SamplingFields, kw_only=True):
    """The body of a response."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] = msgspec.field(default_factory=dict)
    include: list[str] = msgspec.field(default_factory=list)
    top_logprobs: int = 0
    background: bool = False
    truncation: str = "disabled"
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)

    # Known, and without an effect here.
    reasoning: Any = None
    max_tool_calls: Any = None
    conversation: Any = None
    prompt: Any = None


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["generation"])
    store = ResponseStore()

    @routes.post("/v1/responses", **described(ResponsesRequest, "Respond to items."))
    async def responses(request: Request) -> Response:
        body = await service.bodies.read(request, ResponsesRequest)
        owner = client_of(request).name
        _refuse_unsupported(body)
        earlier: list[dict[str, Any]] = []
        if body.previous_response_id is not None:
            earlier = store.get(owner, body.previous_response_id).items
        items = [*earlier, *_items(body.input)]
        messages = checked_messages(messages_of(body.instructions, items))
        reasoning = await service.reasoning.of(messages, body.chat_template_kwargs)
        call = _prepare(service, body, reasoning)
        part = chat_part(
            messages,
            None if call.tools is None else call.tools.tools,
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

        def keep(response: dict[str, Any]) -> None:
            if body.store:
                store.put(owner, response["id"], Stored(response, [*items, *response["output"]]))

        if body.stream:
            return await event_stream(request, exchange, ResponseWriter(call, keep))
        finished: list[Finished] = await unless_hung_up(request, exchange, exchange.outcomes)
        response = finished_response(call, finished[0])
        keep(response)
        return JsonResponse(response)

    @routes.get("/v1/responses/{response_id}", **described(None, "A response that was stored."))
    async def stored(request: Request, response_id: str) -> Response:
        return JsonResponse(store.get(client_of(request).name, response_id).response)

    @routes.delete("/v1/responses/{response_id}", **described(None, "Forget a response."))
    async def forget(request: Request, response_id: str) -> Response:
        store.delete(client_of(request).name, response_id)
        return JsonResponse({"id": response_id, "object": "response", "deleted": True})

    return routes


def _refuse_unsupported(body: ResponsesRequest) -> None:
    if body.background:
        raise invalid("background", "responses are not run in the background", "unsupported")
    if body.conversation is not None:
        raise invalid("conversation", "use previous_response_id or send all items", "unsupported")
    if body.prompt is not None:
        raise invalid("prompt", "there are no stored prompts; send instructions", "unsupported")
    if body.n != 1:
        raise invalid("n", f"{body.n}: a response has one output")
    if body.truncation not in ("disabled", "auto"):
        raise invalid("truncation", f"{body.truncation[:60]!r}: use disabled")
    for name in body.include:
        if name not in _INCLUDED:
            raise invalid("include", f"{name[:60]!r} is not supported", "unsupported")


def _items(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not given:
        raise invalid("input", "give a text or at least one item")
    return given


def _prepare(service: Service, body: ResponsesRequest, reasoning: Reasoning | None) -> ResponseCall:
    model = service.model_of(body.model)
    tools = _tools(body)
    text_format = body.text.get("format") or {"type": "text"}
    if not isinstance(text_format, dict):
        raise invalid("text.format", "use an object with a type")
    if text_format.get("type") != "text":
        if body.response_format is not None:
            raise invalid("response_format", "give either it or text.format", "conflict")
        body.response_format = {
            "type": text_format.get("type"),
            "json_schema": {name: v for name, v in text_format.items() if name != "type"},
        }
    constraint = constraint_of(body)
    if tools is not None:
        constraint = tools.constraint(constraint)
    if reasoning is not None and constraint is not None and body.constraint is None:
        is_free_first = tools is not None and tools.choice == "auto"
        constraint = reasoning.unbound(constraint, is_free_first=is_free_first)
    top = body.top_logprobs if LOGPROBS in body.include or body.top_logprobs else None
    if top is not None and not 0 <= top <= MAX_TOP:
        raise invalid("top_logprobs", f"{top}: use 0 to {MAX_TOP}")
    if body.max_output_tokens is not None and body.max_output_tokens < 1:
        raise invalid("max_output_tokens", f"{body.max_output_tokens}: use at least 1")
    return ResponseCall(
        id=f"resp_{secrets.token_hex(24)}",
        created=now(),
        model=model,
        sampling=body.sampling(body.max_output_tokens, top_logprobs=top, prompt_logprobs=False),
        constraint=constraint,
        tools=tools,
        reasoning=reasoning,
        style=service.link.tokenizer.get("tool_format", {}),
        asked={
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": body.reasoning or {"effort": None, "summary": None},
            "store": body.store,
            "temperature": body.temperature,
            "text": {"format": text_format},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs,
            "top_p": body.top_p,
            "truncation": body.truncation,
            "user": body.user,
        },
    )


def _tools(body: ResponsesRequest) -> ToolUse | None:
    """Return what may be called: definitions stand here without the wrapping of chats."""
    tools = []
    for index, tool in enumerate(body.tools or ()):
        if tool.get("type") != "function":
            kind = str(tool.get("type"))[:60]
            raise invalid(f"tools[{index}].type", f"{kind!r} is not supported; use function")
        function = {name: value for name, value in tool.items() if name != "type"}
        tools.append({"type": "function", "function": tool.get("function", function)})
    try:
        return tool_use(tools, body.tool_choice, body.parallel_tool_calls)
    except ApiError as error:
        error.message = error.message.replace(".function.name", ".name")
        raise
