"""``radixrt run`` and ``radixrt chat``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from radixrt.cli.options import config_of, with_settings
from radixrt.cli.reporting import reporting
from radixrt.settings import Given

HELP = "/reset forgets what was said, /exit or Ctrl-D ends, Ctrl-C stops an answer"


def register(application: Any) -> None:
    """Add the commands to the command line."""
    from radixrt.cli.client_options import ClientOptions
    from radixrt.cli.talk_options import TalkOptions

    for command in (run, chat):
        application.command()(with_settings(command, ClientOptions, flags_only=TalkOptions))


def run(
    given: dict[str, Given],
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] PROMPT",
            help="Model directory, without it the model that ships; and the prompt, - for standard "
            "input.",
        ),
    ],
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the answer alone.")] = False,
) -> None:
    """Answer one prompt."""
    from radixrt.cli.conversation import Conversation, backend_of, usage_line, write
    from radixrt.cli.talk_options import TalkOptions, Where
    from radixrt.errors import ConfigError

    with reporting():
        *models, prompt = words
        if len(models) > 1:
            raise ConfigError(f"{len(words)} arguments: give [MODEL] PROMPT, the prompt in quotes")
        options: TalkOptions = config_of(TalkOptions, given)
        where = Where.of(given, Path(models[0]) if models else None)
        where.check()
        text = sys.stdin.read() if prompt == "-" else prompt
        if not text:
            raise ConfigError("the prompt is empty; give some text")
        how = options.gen_options()
        with backend_of(where) as backend:
            conversation = Conversation(backend, how, options.system, is_raw=options.raw)
            try:
                write(conversation.say(text), sys.stdout)
            except KeyboardInterrupt:
                print()
                raise typer.Exit(130) from None
            if not quiet:
                print(usage_line(conversation.usage), file=sys.stderr)


def chat(
    given: dict[str, Given],
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="Model directory; without it the one that ships."),
    ] = None,
) -> None:
    """Talk with a model. Every message is a line; each turn finds the ones before in the cache."""
    from radixrt.cli.conversation import Conversation, backend_of
    from radixrt.cli.talk_options import TalkOptions, Where
    from radixrt.errors import CallFailed, ProgramError

    with reporting():
        options: TalkOptions = config_of(TalkOptions, given)
        how = options.gen_options()
        with backend_of(Where.of(given, model)) as backend:
            conversation = Conversation(backend, how, options.system, is_raw=options.raw)
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
