"""A response as it comes: the events that OpenAI's clients build it from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from radixrt.gateway.answer_reader import AnswerPiece
from radixrt.gateway.errors import ApiError
from radixrt.gateway.exchange import Event
from radixrt.gateway.reasoning import ReasoningPiece
from radixrt.gateway.response_object import Items, ResponseCall, response_object
from radixrt.gateway.tool_stream import CallArguments, TextPiece
from radixrt.protocol import Chunk, Finished


class ResponseWriter:
    """Writes the events of one response; an item is open until the next one begins."""

    def __init__(self, call: ResponseCall, keep: Callable[[dict[str, Any]], None]) -> None:
        """``keep`` is given the whole response in the end."""
        self._call = call
        self._keep = keep
        self._items = Items(call)
        self._reader = call.reader()
        self._open: dict[str, Any] | None = None
        self._has_begun = False

    def write(self, events: list[Event]) -> bytes:
        """Return the events for what has come."""
        written = b"" if self._has_begun else self._begin()
        for _, message in events:
            written += self.chunk(message) if isinstance(message, Chunk) else self.end(message)
        return written

    def close(self) -> bytes:
        """Return nothing: the end is an event of the response."""
        return b""

    def error(self, error: ApiError) -> bytes:
        """Return the end of a stream that failed."""
        return self._call.error_event(error)

    def _begin(self) -> bytes:
        self._has_begun = True
        response = response_object(self._call, "in_progress", [])
        event = self._call.event
        return event("response.created", response=response) + event(
            "response.in_progress", response=response
        )

    def chunk(self, chunk: Chunk) -> bytes:
        """Return the events of new text."""
        pieces: list[AnswerPiece] = [TextPiece(chunk.text)]
        if self._reader is not None:
            pieces = self._reader.feed(chunk.text)
        logprobs = self._items.add_logprobs(chunk.logprobs, chunk.top_logprobs)
        # They stand at the first event of the tokens they belong to.
        return b"".join(
            self._piece(piece, [] if position else logprobs)
            for position, piece in enumerate(pieces)
        )

    def end(self, finished: Finished) -> bytes:
        """Return the last events."""
        rest = self._reader.finish() if self._reader is not None else []
        events = b"".join(self._piece(piece, []) for piece in rest)
        if not self._items.items:
            events += self._piece(TextPiece(""), [])
        response = self._items.response(finished)
        events += self._close()
        self._keep(response)
        return events + self._call.event(f"response.{response['status']}", response=response)

    def _piece(self, piece: AnswerPiece, logprobs: list[dict[str, Any]]) -> bytes:
        item = self._items.add(piece)
        events = b""
        if item is not self._open:
            events = self._close(is_over=True) + self._begin_item(item)
        where = self._where(item)
        match piece:
            case ReasoningPiece(text):
                events += self._call.event(
                    "response.reasoning_text.delta", **where, content_index=0, delta=text
                )
            case TextPiece(text):
                events += self._call.event(
                    "response.output_text.delta",
                    **where,
                    content_index=0,
                    delta=text,
                    logprobs=logprobs,
                )
            case CallArguments(_, text):
                events += self._call.event(
                    "response.function_call_arguments.delta", **where, delta=text
                )
        return events

    def _begin_item(self, item: dict[str, Any]) -> bytes:
        self._open = item
        where = self._where(item)
        if item["type"] == "function_call":
            new = {**item, "arguments": ""}
            return self._added(item, new)
        part = {**item["content"][0], "text": ""}
        return self._added(item, {**item, "content": []}) + self._call.event(
            "response.content_part.added", **where, content_index=0, part=part
        )

    def _added(self, item: dict[str, Any], new: dict[str, Any]) -> bytes:
        index = self._where(item)["output_index"]
        return self._call.event("response.output_item.added", output_index=index, item=new)

    def _close(self, *, is_over: bool = False) -> bytes:
        """Return the events that end the open item. ``is_over``: another one follows it."""
        item, self._open = self._open, None
        if item is None:
            return b""
        if is_over:
            item["status"] = "completed"
        where, event = self._where(item), self._call.event
        if item["type"] in ("message", "reasoning"):
            part = copy.deepcopy(item["content"][0])
            kind = part["type"]
            more = {"logprobs": part["logprobs"]} if kind == "output_text" else {}
            events = event(
                f"response.{kind}.done", **where, content_index=0, text=part["text"], **more
            )
            events += event("response.content_part.done", **where, content_index=0, part=part)
        else:
            events = event(
                "response.function_call_arguments.done",
                **where,
                name=item["name"],
                arguments=item["arguments"],
            )
        return events + event(
            "response.output_item.done", output_index=where["output_index"], item=item
        )

    def _where(self, item: dict[str, Any]) -> dict[str, Any]:
        index = next(i for i, other in enumerate(self._items.items) if other is item)
        return {"item_id": item["id"], "output_index": index}
