"""A conversation on a terminal: one branch that grows, its answers printed as they come."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from radixrt.errors import ConfigError, InvalidArgument

if TYPE_CHECKING:
    from radixrt.lang import Backend, ProgramState


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Who answers: a runtime at ``endpoint``, an OpenAI-compatible server at ``url``, or without
    either a runtime of this process for ``model`` with ``settings`` (``OPTION=VALUE``)."""

    model: Path | None = None
    endpoint: str = ""
    url: str = ""
    settings: Sequence[str] = ()

    def check(self) -> None:
        """Raise ``ConfigError`` for what cannot be meant."""
        if self.endpoint and self.url:
            raise ConfigError("--endpoint and --url name two servers; give one")
        for option, value in (("--endpoint", self.endpoint), ("--url", self.url)):
            if value and (self.model is not None or self.settings):
                raise ConfigError(
                    f"{option} is a runtime that serves its model already: leave out the model and "
                    "--set"
                )
        if self.model is not None and not self.model.is_dir():
            raise ConfigError(
                f"model={self.model}: no such directory; give one in Hugging Face format, or none "
                "for the model that ships"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How answers are generated, as ``gen`` takes it."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    regex: str | None
    json_schema: str | None
    """A schema, or the path of a file that holds one."""

    def options(self) -> dict[str, Any]:
        """Return the options of ``gen``. Raises ``InvalidArgument``."""
        given: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
        if self.regex is not None and self.json_schema is not None:
            raise InvalidArgument("json_schema", self.json_schema, "--regex is given: drop one")
        if self.regex is not None:
            given["regex"] = self.regex
        if self.json_schema is not None:
            given["json_schema"] = _schema(self.json_schema)
        return given


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


def _schema(text: str) -> str:
    is_file = not text.lstrip().startswith(("{", "true", "false")) and Path(text).is_file()
    schema = Path(text).read_text(encoding="utf-8") if is_file else text
    try:
        json.loads(schema)
    except ValueError as error:
        raise InvalidArgument(
            "json_schema", text, f"give a JSON schema or a file that holds one: {error}"
        ) from None
    return schema


def _open(where: Where) -> Backend:
    import radixrt.lang as rt

    if where.endpoint:
        return rt.connect(where.endpoint)
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

    what = where.endpoint or where.url or (where.model.name if where.model else "the model")
    with Console(stderr=True).status(
        f"{'connecting to' if where.endpoint or where.url else 'loading'} {what}"
    ):
        yield
