"""What ``radixrt run`` and ``radixrt chat`` are asked to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radixrt.cli.client_options import ClientOptions
from radixrt.errors import ConfigError, InvalidArgument
from radixrt.model_directory import check_model_directory
from radixrt.settings import Given


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkOptions:
    """How answers are generated, and by whom where that is no running runtime."""

    system: str = ""
    """System message."""

    max_tokens: int = 512
    """Longest answer."""

    temperature: float = 0.7
    """0 is greedy."""

    top_p: float = 1.0
    """Share of probability that is sampled from."""

    seed: int | None = None
    """Makes sampling repeatable."""

    regex: str | None = None
    """Regular expression that an answer matches."""

    json_schema: str | None = None
    """JSON schema of an answer, or a file that holds one."""

    raw: bool = False
    """Go on with the text: no chat template."""

    url: str = ""
    """An OpenAI-compatible server: ``http://HOST:PORT/v1``, with ``OPENAI_API_KEY``."""

    set: tuple[str, ...] = ()
    """OPTION=VALUE, an option of the runtime that is started; repeatable."""

    def gen_options(self) -> dict[str, Any]:
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
            given["json_schema"] = schema_of(self.json_schema)
        return given


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Who answers: a running runtime (``client``), an OpenAI-compatible server at ``url``, or
    without either a runtime of this process for ``model`` with ``settings`` (``OPTION=VALUE``)."""

    model: Path | None = None
    client: ClientOptions = field(default_factory=ClientOptions)
    url: str = ""
    settings: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Given], model: Path | None) -> Where:
        """Return what the command line says. An endpoint that only a variable or a file names is
        for commands that name nobody else."""
        from radixrt.cli.options import config_of

        client, url = config_of(ClientOptions, given), given["url"].value
        settings = given["set"].value
        if given["endpoint"].source != "--endpoint" and (model or url or settings):
            client = ClientOptions()
        return cls(model=model, client=client, url=url, settings=settings)

    def check(self) -> None:
        """Raise ``ConfigError`` for what cannot be meant."""
        endpoint = self.client.endpoint
        if endpoint and self.url:
            raise ConfigError("--endpoint and --url name two servers; give one")
        for option, value in (("--endpoint", endpoint), ("--url", self.url)):
            if value and (self.model is not None or self.settings):
                raise ConfigError(
                    f"{option} is a runtime that serves its model already: leave out the model and "
                    "--set"
                )
        if self.model is not None:
            check_model_directory(self.model)


def schema_of(text: str) -> str:
    """Return the JSON schema that a text, or the file it names, holds; ``InvalidArgument``."""
    is_file = not text.lstrip().startswith(("{", "true", "false")) and Path(text).is_file()
    schema = Path(text).read_text(encoding="utf-8") if is_file else text
    try:
        json.loads(schema)
    except ValueError as error:
        raise InvalidArgument(
            "json_schema", text, f"give a JSON schema or a file that holds one: {error}"
        ) from None
    return schema
