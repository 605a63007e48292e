"""``radixrt keygen``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from radixrt.cli.reporting import reporting


def register(application: Any) -> None:
    """Add the command to the command line."""
    application.command()(keygen)


def keygen(
    directory: Annotated[Path, typer.Argument(help="Where the two files are written.")],
    name: Annotated[str, typer.Argument(help="Name of the key pair, such as server.")],
) -> None:
    """Make a key pair for encrypted tcp: NAME.key (public) and NAME.key_secret."""
    import zmq.auth

    with reporting():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        public_file, secret_file = zmq.auth.create_certificates(directory, name)
        Path(secret_file).chmod(0o600)
        public, _ = zmq.auth.load_certificate(public_file)
        print(f"{public.decode()}  # {name}")
