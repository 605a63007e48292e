"""The answer of a chat completion, and what it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from radixrt.gateway.answer_reader import AnswerReader, answer_reader
from radixrt.gateway.chat_request import ChatRequest
from radixrt.gateway.logprobs import chat_logprobs
from radixrt.gateway.reasoning import Reasoning, ReasoningPiece
from radixrt.gateway.tool_stream import CallArguments, CallBegin, TextPiece
from radixrt.gateway.tools import ToolUse, call_id
from radixrt.gateway.usage import finish_reason, stop_reason, usage_of
from radixrt.protocol import Constraint, Finished, Output, Sampling


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
    reasoning: Reasoning | None
    style: dict[str, Any] = field(default_factory=dict)

    def reader(self) -> AnswerReader | None:
        """Return what reads an output; None where all of it is the answer's text."""
        return answer_reader(self.reasoning, self.tools, self.style)

    @property
    def shows_reasoning(self) -> bool:
        """Whether reasoning is part of the answer."""
        return self.request.include_reasoning is not False

    def usage(self, finished: Finished, readers: Sequence[AnswerReader | None]) -> dict[str, Any]:
        """Return the token counts; ``readers`` have read the outputs."""
        reasoning, num_tokens = self.reasoning, 0
        if reasoning is not None:
            for output, reader in zip(finished.outputs, readers, strict=True):
                is_whole = reader is not None and reader.is_reasoning
                num_tokens += reasoning.num_tokens(output.token_ids, is_whole=is_whole)
        return usage_of([finished], num_tokens)

    def reason(self, output: Output, num_calls: int) -> str:
        """Return why an output ended, in OpenAI's words."""
        word = finish_reason(output.finish_reason)
        if self.tools is None or not num_calls or word != "stop":
            return word
        if self.tools.legacy:
            return "function_call"
        return "stop" if self.tools.is_named else "tool_calls"


def completion(call: ChatCall, finished: Finished) -> dict[str, Any]:
    """Return the answer to a request that is no stream."""
    readers = [call.reader() for _ in finished.outputs]
    choices = [
        _choice(call, index, output, reader)
        for index, (output, reader) in enumerate(zip(finished.outputs, readers, strict=True))
    ]
    return {
        "id": call.id,
        "object": "chat.completion",
        "created": call.created,
        "model": call.model,
        "choices": choices,
        "usage": call.usage(finished, readers),
        "service_tier": None,
        "system_fingerprint": None,
    }


def _choice(
    call: ChatCall, index: int, output: Output, reader: AnswerReader | None
) -> dict[str, Any]:
    message, num_calls = _message(call, output, reader)
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


def _message(
    call: ChatCall, output: Output, reader: AnswerReader | None
) -> tuple[dict[str, Any], int]:
    message: dict[str, Any] = {"role": "assistant", "content": output.text, "refusal": None}
    if reader is None:
        return message, 0
    reasoning, text, calls = _read(reader, output.text, call.style.get("name", ""))
    message["content"] = text if text or not (reasoning or calls) else None
    if reasoning and call.shows_reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        assert call.tools is not None
        if call.tools.legacy:
            message["function_call"] = calls[0]["function"]
        else:
            message["tool_calls"] = calls
    return message, len(calls)


def _read(
    reader: AnswerReader, text: str, tool_format: str
) -> tuple[str, str, list[dict[str, Any]]]:
    """Return the reasoning in a whole text, the answer and the calls."""
    reasoning = answer = ""
    calls: list[dict[str, Any]] = []
    for piece in [*reader.feed(text), *reader.finish()]:
        match piece:
            case ReasoningPiece(more):
                reasoning += more
            case TextPiece(more):
                answer += more
            case CallBegin(_, name):
                function = {"name": name, "arguments": ""}
                calls.append({"id": call_id(tool_format), "type": "function", "function": function})
            case CallArguments(_, more):
                calls[-1]["function"]["arguments"] += more
    return reasoning, answer, calls
