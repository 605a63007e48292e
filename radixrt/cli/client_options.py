"""How the commands that talk to a running runtime reach it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radixrt.errors import ConfigError

if TYPE_CHECKING:
    from radixrt.lang import RuntimeEndpoint
    from radixrt.settings import Given


Endpoint = Annotated[str, typer.Argument(metavar="[ENDPOINT]", help="As --endpoint.")]
"""The argument of commands that are about a running runtime alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Options of a client."""

    endpoint: str = ""
    """A running runtime: ``ipc://PATH`` or ``tcp://HOST:PORT``, as ``radixrt serve`` prints it."""

    server_key: Path | None = None
    """File with the public key of an encrypted ``tcp://`` endpoint (``server.key``)."""

    client_key: Path | None = None
    """File with the key pair that an encrypted ``tcp://`` endpoint knows us by
    (``NAME.key_secret``; ``radixrt keygen`` makes both)."""

    @classmethod
    def of(cls, given: Mapping[str, Given], endpoint: str = "") -> ClientOptions:
        """Return the given ones; ``endpoint`` is one that was written without its flag. Raises
        ``ConfigError`` without any."""
        from radixrt.cli.options import config_of

        options: ClientOptions = config_of(cls, given)
        if endpoint:
            options = replace(options, endpoint=endpoint)
        if not options.endpoint:
            raise ConfigError(
                "endpoint: say where the runtime is, with --endpoint or the variable "
                "RADIXRT_ENDPOINT; `radixrt serve` prints it"
            )
        return options

    def connect(self) -> RuntimeEndpoint:
        """Open a session. Raises what ``radixrt.connect`` does."""
        from radixrt.lang.backend import connect

        return connect(self.endpoint, server_key=self.server_key, client_key=self.client_key)
