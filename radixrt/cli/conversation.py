"""A conversation on a terminal: one branch that grows, its answers printed as they come."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from radixrt.cli.talk_options import Where
    from radixrt.lang import Backend, ProgramState


@contextlib.contextmanager
def backend_of(where: Where) -> Iterator[Backend]:
    """Open the backend for the context; on a terminal it says what it waits for."""
    where.check()
    with _waiting(where):
        backend = _open(where)
    with backend:
        yield backend


class Conversation:
    """What was said so far, kept as one branch: every turn finds the ones before in the cache.

    ``is_raw`` leaves the chat template out: the model goes on with the text it is given.
    """

    def __init__(
        self,
        backend: Backend,
        gen_options: dict[str, Any],
        system: str = "",
        *,
        is_raw: bool = False,
    ) -> None:
        self._backend = backend
        self._gen_options = gen_options
        self._system = system
        self._is_raw = is_raw
        self._numbers = itertools.count(1)
        self._state = self._begin()
        self.usage: dict[str, Any] = {}
        """Token counts and ``seconds`` of the latest answer that came to its end."""

    def say(self, text: str) -> Iterator[str]:
        """Yield the answer to a message, piece by piece.

        Closing the iterator, or Ctrl-C, stops the generation; the conversation goes on with what
        was said until then. After a failure it goes on as if the message had not been sent.
        """
        import radixrt.lang as rt

        began, name = time.monotonic(), f"answer {next(self._numbers)}"
        turn, said = self._state.fork(1)[0], ""
        answer = rt.gen(name, **self._gen_options)
        if self._is_raw:
            turn += text
            turn += answer
        else:
            turn += rt.user(text)
            turn += rt.assistant(answer)
        pieces = turn.text_iter(name)
        try:
            for piece in pieces:
                said += piece
                yield piece
        except (KeyboardInterrupt, GeneratorExit):
            pieces.close()
            turn.close()
            self._resume(text, said)
            raise
        except BaseException:
            turn.close()
            raise
        self.usage = {**turn.get_meta_info(name), "seconds": time.monotonic() - began}
        self._state.close()
        self._state = turn

    def reset(self) -> None:
        """Forget what was said."""
        self._state.close()
        self._state = self._begin()

    def _begin(self) -> ProgramState:
        import radixrt.lang as rt

        @rt.function
        def conversation(s: ProgramState) -> None:
            if self._system:
                s += self._system if self._is_raw else rt.system(self._system)

        return conversation.run(backend=self._backend, stream=True)

    def _resume(self, text: str, said: str) -> None:
        import radixrt.lang as rt

        if self._is_raw:
            self._state += text + said
        else:
            self._state += rt.user(text)
            self._state += rt.assistant(said)


def usage_line(usage: dict[str, Any]) -> str:
    """Return an answer's token counts in words."""
    seconds, generated = usage["seconds"], usage["completion_tokens"]
    rate = f", {generated / seconds:,.0f} tokens/s" if seconds > 0 else ""
    return (
        f"{usage['prompt_tokens']:,} prompt tokens, {usage['cached_tokens']:,} of them cached; "
        f"{generated:,} generated in {seconds:.2f} s{rate}"
    )


def write(pieces: Iterator[str], stream: TextIO) -> None:
    """Print an answer as it comes, and the end of its line."""
    for piece in pieces:
        stream.write(piece)
        stream.flush()
    stream.write("\n")
    stream.flush()


def _open(where: Where) -> Backend:
    import radixrt.lang as rt

    if where.client.endpoint:
        return where.client.connect()
    if where.url:
        return rt.OpenAI(where.url)
    from radixrt.bench.models import parse_settings

    return rt.Runtime(where.model, **parse_settings(where.settings))


@contextlib.contextmanager
def _waiting(where: Where) -> Iterator[None]:
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    server = where.client.endpoint or where.url
    model = where.model.name if where.model else "the model"
    with Console(stderr=True).status(f"connecting to {server}" if server else f"loading {model}"):
        yield
