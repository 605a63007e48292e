"""A frontend over the fake engine, driven by hand: no socket, no thread, no clock."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, TypeVar

from fake_engine import FakeEngine

from radixrt.config import RuntimeConfig
from radixrt.protocol import (
    Append,
    Chosen,
    Chunk,
    Failed,
    Finished,
    Generate,
    Hello,
    Message,
    Open,
    Part,
    Reply,
    Sampling,
    Select,
    Stats,
    ToClient,
    decode,
    encode,
)
from radixrt.runtime.frontend.chat import load_chat_format
from radixrt.runtime.frontend.frontend import Frontend
from radixrt.runtime.tokenizer import Tokenizer

T = TypeVar("T")


def text(content: str) -> Part:
    return Part("text", content)


class Harness:
    """Clients on one side, the fake engine on the other."""

    def __init__(self, path: Path, *, max_context: int = 512, **options: Any) -> None:
        self.now = 100.0
        self.tokenizer = Tokenizer(path)
        self.engine = FakeEngine(self.tokenizer.vocab_size)
        self.inbox: dict[bytes, list[ToClient]] = {}
        self.frontend = Frontend(
            RuntimeConfig(model=path, **options),
            self.engine.ready(max_context),
            self.tokenizer,
            load_chat_format(path, self.tokenizer),
            send_client=self._to_client,
            send_engine=self.engine.take,
            clock=lambda: self.now,
        )

    def _to_client(self, client_id: bytes, messages: list[ToClient]) -> None:
        # Through the wire's form, so that what is sent can be received.
        self.inbox.setdefault(client_id, []).extend(decode(encode(m)) for m in messages)  # type: ignore[misc]

    def client(self, name: bytes = b"c") -> Client:
        client = Client(self, name)
        client.send(Hello())
        client.take()
        return client

    def step(self) -> None:
        self.frontend.on_engine(self.engine.step())

    def run(self, max_steps: int = 2000) -> None:
        """Step until every call is answered."""
        for _ in range(max_steps):
            if not self.frontend.num_calls and not self.engine.running:
                return
            self.step()
        raise AssertionError("calls are still unanswered")

    def says(self, *pieces: str | int) -> list[int]:
        """Let every generation consist of these pieces (text, or token ids), then the end token."""
        tokens: list[int] = []
        for piece in pieces:
            tokens += [piece] if isinstance(piece, int) else self.tokenizer.encode(piece).tolist()
        eos = min(self.tokenizer.end_ids)
        self.engine.reply = lambda ids, n: tokens[n] if n < len(tokens) else eos
        return tokens


class Client:
    """One client."""

    def __init__(self, harness: Harness, name: bytes) -> None:
        self.harness = harness
        self.name = name
        self.calls = itertools.count(1)

    def send(self, *messages: Message) -> None:
        self.harness.frontend.on_client(self.name, list(messages))

    def take(self) -> list[ToClient]:
        """What has arrived since the last time."""
        return self.harness.inbox.pop(self.name, [])

    def open(self, branch: int = 1, *parts: Part) -> None:
        self.send(Open(branch))
        if parts:
            self.send(Append(branch, parts))

    def generate(self, branch: int = 1, *, call: int | None = None, **options: Any) -> int:
        """Send a generation; fields of ``Generate`` by name, all others are sampling's."""
        own = {k: options.pop(k) for k in ("stream", "credit", "deadline_s") if k in options}
        call = next(self.calls) if call is None else call
        self.send(Generate(call, branch, Sampling(**options), **own))
        return call

    def finish(self, branch: int = 1, **options: Any) -> Finished:
        """Generate and return the answer."""
        return self.answer(self.generate(branch, **options), Finished)

    def select(self, branch: int, options: tuple[str, ...], method: str) -> Chosen:
        call = next(self.calls)
        self.send(Select(call, branch, options, method))  # type: ignore[arg-type]
        return self.answer(call, Chosen)

    def answer(self, call: int, kind: type[T]) -> T:
        """Run to the end and return the one answer of a call; others are kept."""
        self.harness.run()
        kept = self.take()
        answers = [m for m in kept if getattr(m, "call", None) == call and not isinstance(m, Chunk)]
        assert len(answers) == 1, answers
        assert isinstance(answers[0], kind), answers[0]
        self.harness.inbox[self.name] = [m for m in kept if m is not answers[0]]
        return answers[0]

    def failure(self, call: int | None) -> Failed:
        return self.answer(call, Failed)  # type: ignore[arg-type]

    def stats(self) -> dict[str, Any]:
        call = next(self.calls)
        self.send(Stats(call))
        self.harness.run()
        return self.answer(call, Reply).data
