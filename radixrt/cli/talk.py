"""``radixrt run`` and ``radixrt chat``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from radixrt.cli.reporting import reporting

Endpoint = Annotated[str, typer.Option(help="A running runtime: ipc://PATH or tcp://HOST:PORT.")]
Url = Annotated[
    str, typer.Option(help="An OpenAI-compatible server: http://HOST:PORT/v1, with OPENAI_API_KEY.")
]
System = Annotated[str, typer.Option(help="System message.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Share of probability that is sampled from.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
Regex = Annotated[str | None, typer.Option(help="Regular expression that an answer matches.")]
JsonSchema = Annotated[
    str | None, typer.Option(help="JSON schema of an answer, or a file that holds one.")
]
Raw = Annotated[bool, typer.Option("--raw", help="Go on with the text: no chat template.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="OPTION=VALUE", help="An option of the runtime; repeatable."),
]

HELP = "/reset forgets what was said, /exit or Ctrl-D ends, Ctrl-C stops an answer"


def register(application: Any) -> None:
    """Add the commands to the command line."""
    application.command()(run)
    application.command()(chat)


def run(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] PROMPT",
            help="Model directory, without it the model that ships; and the prompt, - for standard "
            "input.",
        ),
    ],
    system: System = "",
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    seed: Seed = None,
    regex: Regex = None,
    json_schema: JsonSchema = None,
    raw: Raw = False,
    endpoint: Endpoint = "",
    url: Url = "",
    settings: Settings = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the answer alone.")] = False,
) -> None:
    """Answer one prompt."""
    from radixrt.cli.conversation import Conversation, How, Where, backend_of, usage_line, write
    from radixrt.errors import ConfigError

    with reporting():
        *models, prompt = words
        if len(models) > 1:
            raise ConfigError(f"{len(words)} arguments: give [MODEL] PROMPT, the prompt in quotes")
        how = How(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            regex=regex,
            json_schema=json_schema,
        ).options()
        where = Where(
            model=Path(models[0]) if models else None,
            endpoint=endpoint,
            url=url,
            settings=settings or (),
        )
        where.check()
        text = sys.stdin.read() if prompt == "-" else prompt
        if not text:
            raise ConfigError("the prompt is empty; give some text")
        with backend_of(where) as backend:
            conversation = Conversation(backend, how, system, is_raw=raw)
            try:
                write(conversation.say(text), sys.stdout)
            except KeyboardInterrupt:
                print()
                raise typer.Exit(130) from None
            if not quiet:
                print(usage_line(conversation.usage), file=sys.stderr)


def chat(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="Model directory; without it the one that ships."),
    ] = None,
    system: System = "",
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    seed: Seed = None,
    regex: Regex = None,
    json_schema: JsonSchema = None,
    raw: Raw = False,
    endpoint: Endpoint = "",
    url: Url = "",
    settings: Settings = None,
) -> None:
    """Talk with a model. Every message is a line; each turn finds the ones before in the cache."""
    from radixrt.cli.conversation import Conversation, How, Where, backend_of
    from radixrt.errors import CallFailed, ProgramError

    with reporting():
        how = How(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            regex=regex,
            json_schema=json_schema,
        ).options()
        where = Where(model=model, endpoint=endpoint, url=url, settings=settings or ())
        with backend_of(where) as backend:
            conversation = Conversation(backend, how, system, is_raw=raw)
            print(f"{backend.get_model_name()}: {HELP}", file=sys.stderr)
            for line in _lines():
                if line in ("/exit", "/quit"):
                    return
                if line == "/reset":
                    conversation.reset()
                elif line.startswith("/"):
                    print(f"no such command; {HELP}", file=sys.stderr)
                elif line:
                    try:
                        _answer(conversation, line)
                    except ProgramError as error:
                        if not isinstance(error.cause, CallFailed):
                            raise
                        print(f"radixrt: {error.cause}", file=sys.stderr)


def _answer(conversation: Any, line: str) -> None:
    from radixrt.cli.conversation import usage_line, write

    try:
        write(conversation.say(line), sys.stdout)
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr)
    else:
        print(usage_line(conversation.usage), file=sys.stderr)


def _lines() -> Iterator[str]:
    """Yield what is typed; Ctrl-C at the prompt begins the line again."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        import readline  # noqa: F401  (input() edits lines and remembers them with it)
    while True:
        try:
            yield input("> " if is_terminal else "").strip()
        except EOFError:
            if is_terminal:
                print()
            return
        except KeyboardInterrupt:
            print(f"\n({HELP})", file=sys.stderr)
