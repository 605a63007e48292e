"""The object that a response is, and what it is made of."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import orjson

from radixrt.gateway.answer_reader import AnswerPiece, AnswerReader, answer_reader
from radixrt.gateway.errors import ApiError
from radixrt.gateway.logprobs import chat_logprobs
from radixrt.gateway.reasoning import Reasoning, ReasoningPiece
from radixrt.gateway.tool_stream import CallArguments, CallBegin, TextPiece
from radixrt.gateway.tools import ToolUse, call_id
from radixrt.gateway.usage import usage_of
from radixrt.protocol import Constraint, Finished, FinishReason, Sampling, TokenLogprob


@dataclass(slots=True)
class ResponseCall:
    """A response on its way. ``asked`` are the fields of the request that its object repeats."""

    id: str
    created: int
    model: str
    sampling: Sampling
    constraint: Constraint | None
    tools: ToolUse | None
    reasoning: Reasoning | None
    style: dict[str, Any]
    asked: dict[str, Any]
    num_events: int = 0

    def reader(self) -> AnswerReader | None:
        """Return what reads the output; None where all of it is the answer's text."""
        return answer_reader(self.reasoning, self.tools, self.style)

    def event(self, kind: str, **fields: Any) -> bytes:
        """Return the next event of the stream."""
        data = {"type": kind, "sequence_number": self.num_events, **fields}
        self.num_events += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(data))

    def error_event(self, error: ApiError) -> bytes:
        """Return the end of a stream that failed."""
        failure = {"code": error.code or "server_error", "message": error.message}
        failed = response_object(self, "failed", [], error=failure)
        return self.event(
            "error", code=error.code, message=error.message, param=error.param
        ) + self.event("response.failed", response=failed)


def response_object(
    call: ResponseCall,
    status: str,
    output: list[dict[str, Any]],
    *,
    finished: Finished | None = None,
    num_reasoning: int = 0,
    error: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the object in a state of its life; of its tokens ``num_reasoning`` were reasoning."""
    return {
        "id": call.id,
        "object": "response",
        "created_at": call.created,
        "status": status,
        "background": False,
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": call.model,
        "output": output,
        "max_tool_calls": None,
        "service_tier": "default",
        "usage": None if finished is None else _usage(finished, num_reasoning),
        **call.asked,
    }


def finished_response(call: ResponseCall, finished: Finished) -> dict[str, Any]:
    """Return the whole response to a call that has ended."""
    generated = finished.outputs[0]
    gathered = Items(call)
    reader = call.reader()
    pieces: list[AnswerPiece] = [TextPiece(generated.text)]
    if reader is not None:
        pieces = [*reader.feed(generated.text), *reader.finish()]
    for piece in pieces:
        gathered.add(piece)
    gathered.add_logprobs(generated.logprobs, generated.top_logprobs)
    return gathered.response(finished)


def status_of(reason: FinishReason) -> str:
    """Return the status of a response that ended so."""
    return "incomplete" if reason.type == "length" else "completed"


class Items:
    """The items of an output as it grows."""

    def __init__(self, call: ResponseCall) -> None:
        self._call = call
        self.items: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []

    def add(self, piece: AnswerPiece) -> dict[str, Any]:
        """Add a piece; return the item that it is part of."""
        match piece:
            case ReasoningPiece(text):
                if not self.items:
                    self.items.append(_reasoning())
                self.items[-1]["content"][0]["text"] += text
            case TextPiece(text):
                if not self.items or self.items[-1]["type"] != "message":
                    self.items.append(_message())
                self.items[-1]["content"][0]["text"] += text
            case CallBegin(_, name):
                identity = call_id(self._call.style.get("name", ""))
                self.items.append(
                    {
                        "id": f"fc_{secrets.token_hex(24)}",
                        "type": "function_call",
                        "status": "in_progress",
                        "name": name,
                        "call_id": identity,
                        "arguments": "",
                    }
                )
            case CallArguments(_, text):
                self.items[-1]["arguments"] += text
        return self.items[-1]

    def add_logprobs(
        self, tokens: tuple[TokenLogprob, ...], tops: tuple[tuple[TokenLogprob, ...], ...]
    ) -> list[dict[str, Any]]:
        """Add the log probabilities of tokens and return them as events have them."""
        if not self._call.sampling.return_logprob:
            return []
        new: list[dict[str, Any]] = chat_logprobs(tokens, tops)["content"]
        self._logprobs += new
        return new

    def response(self, finished: Finished) -> dict[str, Any]:
        """Settle the items and return the response."""
        status = status_of(finished.outputs[0].finish_reason)
        for item in self.items:
            item["status"] = "completed"
            if item["type"] == "message":
                item["content"][0]["logprobs"] = self._logprobs
        if self.items and status == "incomplete":
            self.items[-1]["status"] = status
        reasoning, num_reasoning = self._call.reasoning, 0
        if reasoning is not None and self.items and self.items[0]["type"] == "reasoning":
            token_ids = finished.outputs[0].token_ids
            num_reasoning = reasoning.num_tokens(token_ids, is_whole=len(self.items) == 1)
        return response_object(
            self._call, status, self.items, finished=finished, num_reasoning=num_reasoning
        )


def _reasoning() -> dict[str, Any]:
    return {
        "id": f"rs_{secrets.token_hex(24)}",
        "type": "reasoning",
        "status": "in_progress",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": ""}],
    }


def _message() -> dict[str, Any]:
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {
        "id": f"msg_{secrets.token_hex(24)}",
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [part],
    }


def _usage(finished: Finished, num_reasoning: int) -> dict[str, Any]:
    usage = usage_of([finished], num_reasoning)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": usage["prompt_tokens_details"],
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": num_reasoning},
        "total_tokens": usage["total_tokens"],
    }
