"""``/v1/completions``: texts that go on, as they are and without a template."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

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
from radixrt.gateway.logprobs import MAX_TOP, completion_logprobs
from radixrt.gateway.openapi import described
from radixrt.gateway.service import MAX_PROMPTS, Service, now, request_id_of
from radixrt.gateway.usage import finish_reason, stop_reason, usage_of
from radixrt.protocol import Chunk, Detokenize, Finished, Output, Part, Sampling

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, and vLLM's."""


_FORMS = "give a string, token ids, or a list of strings or token ids"


class CompletionRequest(SamplingFields, kw_only=True):
    """The body of a completion."""

    prompt: Any
    max_tokens: int = DEFAULT_MAX_TOKENS
    echo: bool = False
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str = ""

    # Known, and without an effect here.
    add_special_tokens: Any = None


@dataclass(slots=True)
class CompletionCall:
    """A completion on its way: what its answer is made of. ``echoes`` are the texts of the prompts,
    empty where they are not asked for."""

    id: str
    created: int
    model: str
    request: CompletionRequest
    sampling: Sampling
    echoes: list[str]


def router(service: Service) -> APIRouter:
    """Return the route."""
    routes = APIRouter(tags=["generation"])

    @routes.post("/v1/completions", **described(CompletionRequest, "Go on with texts."))
    async def completions(request: Request) -> Response:
        body = await service.bodies.read(request, CompletionRequest)
        prompts = read_prompts(body.prompt)
        model = service.model_of(body.model)
        sampling = _sampling(body)
        constraint = constraint_of(body)
        echoes = await _echoes(service, prompts) if body.echo else [""] * len(prompts)
        call = CompletionCall(
            f"cmpl-{request_id_of(request)}", now(), model, body, sampling, echoes
        )
        exchange = service.begin(
            request,
            [(prompt,) for prompt in prompts],
            sampling,
            constraint,
            stream=body.stream,
            cache_salt=body.cache_salt,
        )
        if body.stream:
            return await event_stream(request, exchange, _Writer(call))
        finished = await unless_hung_up(request, exchange, exchange.outcomes)
        return JsonResponse(_completion(call, finished))

    return routes


def read_prompts(prompt: Any) -> list[Part]:
    """Return the prompts of a request: a text, token ids, or a list of either. Raises
    ``ApiError``."""
    if isinstance(prompt, str):
        return [Part("markup", prompt)]
    if not isinstance(prompt, list) or not prompt:
        raise invalid("prompt", _FORMS)
    items = [prompt] if _are_ids(prompt) else prompt
    parts = [_prompt(item) for item in items]
    if len(parts) > MAX_PROMPTS:
        raise invalid("prompt", f"{len(parts)} prompts; give at most {MAX_PROMPTS}")
    return parts


def _prompt(item: Any) -> Part:
    if isinstance(item, str):
        return Part("markup", item)
    if isinstance(item, list) and _are_ids(item):
        return Part("tokens", token_ids=tuple(item))
    raise invalid("prompt", _FORMS)


def _are_ids(items: list[Any]) -> bool:
    # Within 63 bits; the runtime says which ids its model has.
    return bool(items) and all(type(item) is int and -(2**62) < item < 2**62 for item in items)


def _sampling(body: CompletionRequest) -> Sampling:
    if body.suffix:
        raise invalid("suffix", "the model does not insert; leave it out", "unsupported")
    if body.best_of is not None and body.best_of != body.n:
        raise invalid("best_of", "it is not supported beside n; leave it out", "unsupported")
    if body.max_tokens < 0:
        raise invalid("max_tokens", f"{body.max_tokens}: use an integer of at least 0")
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_TOP:
        raise invalid("logprobs", f"{body.logprobs}: use 0 to {MAX_TOP}")
    wants_prompt = body.echo and body.logprobs is not None
    return body.sampling(body.max_tokens, top_logprobs=body.logprobs, prompt_logprobs=wants_prompt)


async def _echoes(service: Service, prompts: list[Part]) -> list[str]:
    """Return the texts of prompts."""

    async def text_of(prompt: Part) -> str:
        if prompt.kind != "tokens":
            return prompt.text
        data = await service.link.ask(lambda call: Detokenize(call, prompt.token_ids))
        return str(data["text"])

    return list(await asyncio.gather(*map(text_of, prompts)))


# ---------------------------------------------------------------- at once


def _completion(call: CompletionCall, finished: list[Finished]) -> dict[str, Any]:
    return {
        "id": call.id,
        "object": "text_completion",
        "created": call.created,
        "model": call.model,
        "choices": [
            _choice(call, position, answer, index, output)
            for position, answer in enumerate(finished)
            for index, output in enumerate(answer.outputs)
        ],
        "usage": usage_of(finished),
        "system_fingerprint": None,
    }


def _choice(
    call: CompletionCall, position: int, answer: Finished, index: int, output: Output
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": position * call.sampling.n + index,
        "text": call.echoes[position] + output.text,
        "logprobs": None,
        "finish_reason": finish_reason(output.finish_reason),
        "stop_reason": stop_reason(output.finish_reason, call.sampling),
    }
    if call.sampling.return_logprob:
        choice["logprobs"] = completion_logprobs(
            (*answer.prompt_logprobs, *output.logprobs),
            (*_prompt_tops(answer), *output.top_logprobs),
            begins=bool(answer.prompt_logprobs),
        )
    if call.request.return_token_ids:
        choice["token_ids"] = list(output.token_ids)
    return choice


def _prompt_tops(answer: Finished) -> tuple[Any, ...]:
    return answer.prompt_top_logprobs or ((),) * len(answer.prompt_logprobs)


# ---------------------------------------------------------------- as it comes


class _Writer:
    """Writes the events of a stream; what all of them have in common is encoded once.

    Logprobs of an echoed prompt are known when its call has ended: they come with the end.
    """

    def __init__(self, call: CompletionCall) -> None:
        self._call = call
        head = {
            "id": call.id,
            "object": "text_completion",
            "created": call.created,
            "model": call.model,
        }
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        includes_usage = call.request.includes_usage
        self._tail = b"]" + (b',"usage":null' if includes_usage else b"") + b"}\n\n"
        self._lengths = [0] * (len(call.echoes) * call.sampling.n)
        self._begun = [False] * len(self._lengths)
        self._finished: list[Finished] = []

    def write(self, events: list[Event]) -> bytes:
        """Return the events for what has come."""
        if len(events) == 1 and isinstance(chunk := events[0][1], Chunk):
            return self.chunk(events[0][0], chunk)
        return b"".join(
            self.chunk(position, message)
            if isinstance(message, Chunk)
            else self.end(position, message)
            for position, message in events
        )

    def chunk(self, position: int, chunk: Chunk) -> bytes:
        """Return the event of new text."""
        index = position * self._call.sampling.n + chunk.index
        logprobs = b"null"
        if self._call.sampling.return_logprob:
            offset = self._lengths[index] + len(self._call.echoes[position])
            logprobs = orjson.dumps(
                completion_logprobs(chunk.logprobs, chunk.top_logprobs, begins=False, offset=offset)
            )
        self._lengths[index] += len(chunk.text)
        more = b""
        if self._call.request.return_token_ids:
            more = b',"token_ids":' + orjson.dumps(chunk.token_ids)
        return b'%b{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null%b}%b' % (
            self._head,
            index,
            orjson.dumps(self._echo(position, index) + chunk.text),
            logprobs,
            more,
            self._tail,
        )

    def end(self, position: int, finished: Finished) -> bytes:
        """Return the events that end the outputs of one prompt."""
        self._finished.append(finished)
        events = b""
        for number, output in enumerate(finished.outputs):
            index = position * self._call.sampling.n + number
            logprobs = b"null"
            if finished.prompt_logprobs:
                logprobs = orjson.dumps(
                    completion_logprobs(
                        finished.prompt_logprobs, _prompt_tops(finished), begins=True
                    )
                )
            events += b'%b{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b,%b}%b' % (
                self._head,
                index,
                orjson.dumps(self._echo(position, index)),
                logprobs,
                orjson.dumps(finish_reason(output.finish_reason)),
                b'"stop_reason":'
                + orjson.dumps(stop_reason(output.finish_reason, self._call.sampling)),
                self._tail,
            )
        return events

    def close(self) -> bytes:
        """Return the end of the stream."""
        if not self._call.request.includes_usage:
            return DONE
        usage = orjson.dumps(usage_of(self._finished))
        return self._head + b'],"usage":' + usage + b"}\n\n" + DONE

    def error(self, error: ApiError) -> bytes:
        """Return the end of a stream that failed."""
        return error_events(error)

    def _echo(self, position: int, index: int) -> str:
        if self._begun[index]:
            return ""
        self._begun[index] = True
        return self._call.echoes[position]
