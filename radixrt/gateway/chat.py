"""``/v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from radixrt.gateway.answers import (
    DONE,
    JsonResponse,
    error_events,
    event_stream,
    unless_hung_up,
)
from radixrt.gateway.constraints import constraint_of
from radixrt.gateway.errors import ApiError, invalid
from radixrt.gateway.exchange import Event
from radixrt.gateway.fields import SamplingFields
from radixrt.gateway.logprobs import MAX_TOP, chat_logprobs
from radixrt.gateway.messages import chat_part, checked_messages
from radixrt.gateway.openapi import described
from radixrt.gateway.service import Service, now, request_id_of
from radixrt.gateway.tool_stream import CallArguments, CallBegin, Piece, TextPiece, ToolReader
from radixrt.gateway.tools import ToolUse, call_id, tool_use
from radixrt.gateway.usage import finish_reason, stop_reason, usage_of
from radixrt.protocol import Chunk, Constraint, Finished, Output, Sampling


class ChatRequest(SamplingFields, kw_only=True):
    """The body of a chat completion."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    reasoning_effort: Any = None
    modalities: list[str] | None = None

    # Known, and without an effect here.
    prediction: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    include_reasoning: Any = None
    separate_reasoning: Any = None
    add_special_tokens: Any = None

    @property
    def opens_answer(self) -> bool:
        """Whether a new answer is begun: unless it says so, not where the last message goes on."""
        given = self.add_generation_prompt
        return not self.continue_final_message if given is None else given


@dataclass(slots=True)
class ChatCall:
    """A chat request on its way: what its answer is made of."""

    id: str
    created: int
    model: str
    request: ChatRequest
    sampling: Sampling
    constraint: Constraint | None
    tools: ToolUse | None
    style: dict[str, Any] = field(default_factory=dict)

    def reader(self) -> ToolReader | None:
        """Return what reads calls out of an output; None where there are none."""
        if self.tools is None:
            return None
        return ToolReader(self.style, free=self.tools.choice == "auto")

    def reason(self, output: Output, num_calls: int) -> str:
        """Return why an output ended, in OpenAI's words."""
        word = finish_reason(output.finish_reason)
        if self.tools is None or not num_calls or word != "stop":
            return word
        if self.tools.legacy:
            return "function_call"
        return "stop" if self.tools.is_named else "tool_calls"


def router(service: Service) -> APIRouter:
    """Return the route."""
    routes = APIRouter(tags=["generation"])

    @routes.post("/v1/chat/completions", **described(ChatRequest, "Answer a conversation."))
    async def chat_completions(request: Request) -> Response:
        body = await service.bodies.read(request, ChatRequest)
        call = _prepare(service, request, body)
        part = chat_part(
            checked_messages(body.messages),
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
            return await event_stream(request, exchange, _Writer(call))
        finished = await unless_hung_up(request, exchange, exchange.outcomes)
        return JsonResponse(_completion(call, finished[0]))

    return routes


def _prepare(service: Service, request: Request, body: ChatRequest) -> ChatCall:
    model = service.model_of(body.model)
    tools = tool_use(
        body.tools, body.tool_choice, body.parallel_tool_calls, body.functions, body.function_call
    )
    constraint = constraint_of(body)
    if tools is not None:
        constraint = tools.constraint(constraint)
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
        style=service.link.tokenizer.get("tool_format", {}),
    )


# ---------------------------------------------------------------- at once


def _completion(call: ChatCall, finished: Finished) -> dict[str, Any]:
    return {
        "id": call.id,
        "object": "chat.completion",
        "created": call.created,
        "model": call.model,
        "choices": [_choice(call, i, output) for i, output in enumerate(finished.outputs)],
        "usage": usage_of([finished]),
        "service_tier": None,
        "system_fingerprint": None,
    }


def _choice(call: ChatCall, index: int, output: Output) -> dict[str, Any]:
    message, num_calls = _message(call, output)
    choice: dict[str, Any] = {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(output.logprobs, output.top_logprobs)
        if call.sampling.return_logprob
        else None,
        "finish_reason": call.reason(output, num_calls),
        "stop_reason": stop_reason(output.finish_reason, call.sampling),
    }
    if call.request.return_token_ids:
        choice["token_ids"] = list(output.token_ids)
    return choice


def _message(call: ChatCall, output: Output) -> tuple[dict[str, Any], int]:
    message: dict[str, Any] = {"role": "assistant", "content": output.text, "refusal": None}
    reader = call.reader()
    if reader is None:
        return message, 0
    text, calls = read_calls(reader, output.text, call.style.get("name", ""))
    if calls:
        message["content"] = text or None
        assert call.tools is not None
        if call.tools.legacy:
            message["function_call"] = calls[0]["function"]
        else:
            message["tool_calls"] = calls
    return message, len(calls)


def read_calls(reader: ToolReader, text: str, tool_format: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the answer in a whole text and the calls in it."""
    answer = ""
    calls: list[dict[str, Any]] = []
    for piece in [*reader.feed(text), *reader.finish()]:
        match piece:
            case TextPiece(more):
                answer += more
            case CallBegin(_, name):
                function = {"name": name, "arguments": ""}
                calls.append({"id": call_id(tool_format), "type": "function", "function": function})
            case CallArguments(_, more):
                calls[-1]["function"]["arguments"] += more
    return answer, calls


# ---------------------------------------------------------------- as it comes


class _Writer:
    """Writes the events of a stream; what all of them have in common is encoded once."""

    def __init__(self, call: ChatCall) -> None:
        self._call = call
        head = {
            "id": call.id,
            "object": "chat.completion.chunk",
            "created": call.created,
            "model": call.model,
        }
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        tail = b',"usage":null' if call.request.includes_usage else b""
        self._tail = b"]" + tail + b"}\n\n"
        self._open = [True] * call.sampling.n
        self._readers = [call.reader() for _ in range(call.sampling.n)]
        self._ids = call.style.get("name", "")
        self._num_begun = [0] * call.sampling.n

    def write(self, events: list[Event]) -> bytes:
        """Return the events for what has come."""
        if len(events) == 1 and isinstance(chunk := events[0][1], Chunk):
            return self.chunk(chunk)
        return b"".join(
            self.chunk(message) if isinstance(message, Chunk) else self.end(message)
            for _, message in events
        )

    def chunk(self, chunk: Chunk) -> bytes:
        """Return the events of new text."""
        index = chunk.index
        events = self._opening(index)
        reader = self._readers[index]
        logprobs = b"null"
        if self._call.sampling.return_logprob:
            logprobs = orjson.dumps(chat_logprobs(chunk.logprobs, chunk.top_logprobs))
        if reader is None:
            if chunk.text or chunk.logprobs:
                delta = b'{"content":' + orjson.dumps(chunk.text) + b"}"
                events += self._event(index, delta, logprobs, chunk.token_ids)
            return events
        pieces = reader.feed(chunk.text)
        if not pieces and chunk.logprobs:
            pieces = [TextPiece("")]
        for position, piece in enumerate(pieces):
            # Logprobs stand at the first event of the tokens they belong to.
            own = b"null" if position else logprobs
            events += self._event(index, self._delta(index, piece), own)
        return events

    def end(self, finished: Finished) -> bytes:
        """Return the events that end the outputs, and the stream."""
        events = b""
        for index, output in enumerate(finished.outputs):
            events += self._opening(index)
            reader = self._readers[index]
            for piece in reader.finish() if reader is not None else ():
                events += self._event(index, self._delta(index, piece))
            reason = self._call.reason(output, self._num_begun[index])
            stop = orjson.dumps(stop_reason(output.finish_reason, self._call.sampling))
            events += (
                self._head
                + b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%s","stop_reason":%s}'
                % (index, reason.encode(), stop)
                + self._tail
            )
        if self._call.request.includes_usage:
            usage = orjson.dumps(usage_of([finished]))
            events += self._head + b'],"usage":' + usage + b"}\n\n"
        return events

    def close(self) -> bytes:
        """Return the end of the stream."""
        return DONE

    def error(self, error: ApiError) -> bytes:
        """Return the end of a stream that failed."""
        return error_events(error)

    def _opening(self, index: int) -> bytes:
        if not self._open[index]:
            return b""
        self._open[index] = False
        return self._event(index, b'{"role":"assistant","content":""}')

    def _event(
        self, index: int, delta: bytes, logprobs: bytes = b"null", token_ids: Sequence[int] = ()
    ) -> bytes:
        more = b""
        if self._call.request.return_token_ids:
            more = b',"token_ids":' + orjson.dumps(token_ids)
        return b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":null%b}%b' % (
            self._head,
            index,
            delta,
            logprobs,
            more,
            self._tail,
        )

    def _delta(self, index: int, piece: Piece) -> bytes:
        match piece:
            case TextPiece(text):
                return orjson.dumps({"content": text})
            case CallBegin(position, name):
                self._num_begun[index] += 1
                return self._call_delta(position, name, "", is_new=True)
            case CallArguments(position, text):
                return self._call_delta(position, None, text, is_new=False)

    def _call_delta(self, position: int, name: str | None, text: str, *, is_new: bool) -> bytes:
        assert self._call.tools is not None
        function = {"arguments": text} if name is None else {"name": name, "arguments": text}
        if self._call.tools.legacy:
            return orjson.dumps({"function_call": function})
        delta: dict[str, Any] = {"index": position, "function": function}
        if is_new:
            delta = {"index": position, "id": call_id(self._ids), "type": "function"} | delta
        return orjson.dumps({"tool_calls": [delta]})
