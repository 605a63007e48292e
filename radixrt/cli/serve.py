"""``radixrt serve`` and ``radixrt config show``."""

from __future__ import annotations

import errno
import json
import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from radixrt.cli.options import config_of, with_settings
from radixrt.cli.reporting import reporting
from radixrt.settings import Given

MODEL_HELP = "Directory in Hugging Face format; without it the model that ships."


def register(application: Any) -> None:
    """Add the commands to the command line."""
    from radixrt.cli.serve_options import ServeOptions
    from radixrt.config import RuntimeConfig

    configs = (RuntimeConfig, ServeOptions)
    application.command()(with_settings(serve, *configs, model_help=MODEL_HELP))
    config = typer.Typer(no_args_is_help=True, help="What the options come to.")
    config.command()(with_settings(show, *configs, model_help=MODEL_HELP))
    application.add_typer(config, name="config")


def serve(given: dict[str, Given]) -> None:
    """Serve a model to programs over ZeroMQ and to any OpenAI client over HTTP."""
    from radixrt.cli.api_keys import read_keys
    from radixrt.cli.serve_options import ServeOptions
    from radixrt.config import RuntimeConfig
    from radixrt.model_directory import check_model_directory

    with reporting():
        config: RuntimeConfig = config_of(RuntimeConfig, given)
        options: ServeOptions = config_of(ServeOptions, given)
        config.resolve()  # says what is wrong before anything is loaded
        options.check()
        check_model_directory(config.model_path)

        def gateway(endpoint: str, port: int | None) -> bytes:
            settings = options.gateway(
                endpoint, keys, drain_s=config.drain_s, log_format=config.log_format
            )
            return json.dumps(asdict(settings) | ({} if port is None else {"port": port})).encode()

        if options.http:
            keys = read_keys(options.api_key_file, options.admin_key_file, os.environ)
            gateway("ipc://to-be-chosen", None)
            check_address(options.host, options.port)
        from radixrt.runtime.endpoints import ServerCurve
        from radixrt.runtime.serving.gateway_process import HttpService
        from radixrt.runtime.serving.server import Server

        http = None
        if options.http:
            names = options.model_name
            http = HttpService(gateway, names[0] if names else "", needs_key=bool(keys))

        curve = None
        if options.curve_secret is not None and options.allow is not None:
            curve = ServerCurve(options.curve_secret, options.allow)
        Server(
            config,
            curve=curve,
            is_open=options.insecure,
            http=http,
            ready_file=options.ready_file,
        ).run()


def show(
    given: dict[str, Given],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the value of every option of serve and where it came from.

    It takes the same arguments, variables and file.
    """
    with reporting():
        if as_json:
            table = {name: {"value": g.value, "source": g.source} for name, g in given.items()}
            print(json.dumps(table, indent=1, default=_as_text))
            return
        width = max(map(len, given))
        values = {name: _as_toml(g.value) for name, g in given.items()}
        value_width = min(40, max(map(len, values.values())))
        for name, g in given.items():
            print(f"{name:<{width}} = {values[name]:<{value_width}}  # {g.source}")


def check_address(host: str, port: int) -> None:
    """Raise ``ConfigError`` for an address that HTTP cannot listen at now."""
    from radixrt.errors import ConfigError

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port={port} of {host} is in use: choose another --port, 0 for any, or --no-http"
            ) from None
        raise ConfigError(f"host={host}, port={port}: HTTP cannot listen there: {error}") from None


def _as_toml(value: Any) -> str:
    """Return a value as the file of ``--config`` would have it; a comment when it has none."""
    if value is None:
        return '""'
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False)
    return json.dumps(value, default=_as_text, ensure_ascii=False)


def _as_text(value: Any) -> str:
    return str(value) if isinstance(value, Path) else repr(value)
