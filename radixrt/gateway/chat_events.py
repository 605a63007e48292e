"""The events of a streamed chat completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from radixrt.gateway.answer_reader import AnswerPiece
from radixrt.gateway.answers import DONE, error_events
from radixrt.gateway.chat_answer import ChatCall
from radixrt.gateway.errors import ApiError
from radixrt.gateway.exchange import Event
from radixrt.gateway.logprobs import chat_logprobs
from radixrt.gateway.reasoning import ReasoningPiece
from radixrt.gateway.tool_stream import CallArguments, CallBegin, TextPiece
from radixrt.gateway.tools import call_id
from radixrt.gateway.usage import stop_reason
from radixrt.protocol import Chunk, Finished


class ChatWriter:
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
        pieces = self._shown(reader.feed(chunk.text))
        has_ids = self._call.request.return_token_ids and chunk.token_ids
        if not pieces and (chunk.logprobs or has_ids):
            pieces = [TextPiece("")]
        for position, piece in enumerate(pieces):
            # Tokens and logprobs stand at the first event of the text they belong to.
            own = (b"null", ()) if position else (logprobs, chunk.token_ids)
            events += self._event(index, self._delta(index, piece), *own)
        return events

    def end(self, finished: Finished) -> bytes:
        """Return the events that end the outputs, and the stream."""
        events = b""
        for index, output in enumerate(finished.outputs):
            events += self._opening(index)
            reader = self._readers[index]
            for piece in self._shown(reader.finish()) if reader is not None else ():
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
            usage = orjson.dumps(self._call.usage(finished, self._readers))
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

    def _shown(self, pieces: list[AnswerPiece]) -> list[AnswerPiece]:
        if self._call.shows_reasoning:
            return pieces
        return [piece for piece in pieces if not isinstance(piece, ReasoningPiece)]

    def _delta(self, index: int, piece: AnswerPiece) -> bytes:
        match piece:
            case ReasoningPiece(text):
                return orjson.dumps({"reasoning_content": text})
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
