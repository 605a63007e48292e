"""A scripted HTTP server in OpenAI's form, for tests of programs on endpoints.

``answer`` gives the answer to a request's path and body: a ``Said`` (text, calls, counts, which is
put into the form that was asked for, streamed or not), a ``Refusal``, or JSON as it is. A token is
a character.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Said:
    """What the scripted model says: one text an output."""

    texts: list[str]
    finish: str = "stop"
    calls: list[tuple[str, str]] = field(default_factory=list)
    cached_tokens: int = 0
    break_after: int | None = None
    """Cut the connection of a stream after so many events."""


@dataclass
class Refusal:
    status: int
    error: Any = field(default_factory=lambda: {"message": "not now"})
    headers: dict[str, str] = field(default_factory=dict)


def prompt_of(body: dict[str, Any]) -> str:
    """The prompt of a request as one text."""
    if "messages" in body:
        return "".join(f"<{m['role']}>{m['content']}" for m in body["messages"])
    prompt = body["prompt"]
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def echo(prompts: list[str], logprob: Callable[[str, int], float]) -> dict[str, Any]:
    """The answer to prompts with ``echo``; ``logprob`` of the character at a place of a prompt."""
    choices = []
    for index, prompt in enumerate(prompts):
        text = prompt + "!"
        values = [None, *[logprob(text, at) for at in range(1, len(text))]]
        logprobs = {
            "tokens": list(text),
            "token_logprobs": values,
            "top_logprobs": [None] * len(text),
            "text_offset": list(range(len(text))),
        }
        choices.append({"index": index, "text": text, "logprobs": logprobs})
    return {"choices": choices, "usage": {"prompt_tokens": sum(map(len, prompts))}}


class ScriptedOpenAI:
    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        """Path, body and headers of what was posted."""
        self.owner = "somebody"
        self.models = ["scripted"]
        self.models_refusal: Refusal | None = None
        self.answer: Callable[[str, dict[str, Any]], Said | Refusal | dict[str, Any]] = (
            lambda path, body: Said([f"<{len(prompt_of(body))}>"] * body.get("n", 1))
        )
        self.hung_up = threading.Event()
        """Set when a stream's reader has gone."""
        self.gate = threading.Event()
        """A stream waits for it before its last event."""
        self.gate.set()
        self.url = ""

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body, _ in self.requests]

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.requests]

    @contextmanager
    def serving(self) -> Iterator[ScriptedOpenAI]:
        script = self

        class Handler(_Handler):
            server_script = script

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield self
        finally:
            self.gate.set()
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_script: ScriptedOpenAI

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        script = self.server_script
        if script.models_refusal is not None:
            self._refuse(script.models_refusal)
            return
        models = [
            {"id": name, "object": "model", "owned_by": script.owner, "max_model_len": 4096}
            for name in script.models
        ]
        self._send(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        script = self.server_script
        raw = self.rfile.read(int(self.headers["content-length"]))
        body = json.loads(raw)
        script.requests.append((self.path, body, dict(self.headers)))
        answer = script.answer(self.path, body)
        if isinstance(answer, Refusal):
            self._refuse(answer)
        elif isinstance(answer, dict):
            self._send(200, answer)
        elif body.get("stream"):
            self._stream(body, answer)
        else:
            self._send(200, _whole(body, answer))

    def _refuse(self, refusal: Refusal) -> None:
        self._send(refusal.status, {"error": refusal.error}, refusal.headers)

    def _send(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, body: dict[str, Any], said: Said) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        events = [*_events(body, said)]
        try:
            for number, event in enumerate(events):
                if number == said.break_after:
                    self.close_connection = True
                    self.connection.close()
                    return
                if number == len(events) - 1:
                    self.server_script.gate.wait(10)
                self._chunk(f"data: {event}\n\n".encode())
            self._chunk(b"")
        except OSError:
            self.close_connection = True
            self.server_script.hung_up.set()

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.flush()


def _usage(body: dict[str, Any], said: Said) -> dict[str, Any]:
    return {
        "prompt_tokens": len(prompt_of(body)),
        "completion_tokens": sum(map(len, said.texts)),
        "prompt_tokens_details": {"cached_tokens": said.cached_tokens},
    }


def _logprobs(body: dict[str, Any], text: str) -> Any:
    if not body.get("logprobs"):
        return None
    if "messages" in body:
        top = [{"token": "x", "logprob": -2.0, "bytes": [120]}] * body.get("top_logprobs", 0)
        return {
            "content": [
                {"token": char, "logprob": -0.5, "bytes": list(char.encode()), "top_logprobs": top}
                for char in text
            ]
        }
    return {
        "tokens": list(text),
        "token_logprobs": [-0.5] * len(text),
        "top_logprobs": [{char: -0.5} for char in text],
        "text_offset": list(range(len(text))),
    }


def _whole(body: dict[str, Any], said: Said) -> dict[str, Any]:
    choices = []
    for index, text in enumerate(said.texts):
        choice: dict[str, Any] = {
            "index": index,
            "finish_reason": said.finish,
            "logprobs": _logprobs(body, text),
        }
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": text}
            if said.calls:
                choice["message"]["tool_calls"] = [
                    {"id": f"x{i}", "type": "function", "function": {"name": n, "arguments": a}}
                    for i, (n, a) in enumerate(said.calls)
                ]
        else:
            choice["text"] = text
        choices.append(choice)
    return {"choices": choices, "usage": _usage(body, said)}


def _events(body: dict[str, Any], said: Said) -> Iterator[str]:
    """One event a character, then the finish, then the usage."""
    is_chat = "messages" in body
    for index, text in enumerate(said.texts):
        for char in text:
            said_now = {"delta": {"content": char}} if is_chat else {"text": char}
            choice = {"index": index, **said_now, "logprobs": _logprobs(body, char)}
            yield json.dumps({"choices": [choice]})
        end = {"delta": {}} if is_chat else {"text": ""}
        yield json.dumps({"choices": [{"index": index, **end, "finish_reason": said.finish}]})
    yield json.dumps({"choices": [], "usage": _usage(body, said)})
    yield "[DONE]"
