"""Keys of a client of an encrypted ``tcp://`` endpoint, and what its handshake says of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from radixrt.errors import InvalidArgument, KeysRefused

if TYPE_CHECKING:
    import zmq

KEY_LEN = 40
"""Characters of a key in Z85 text."""

PATIENCE_S = 3.0
"""How long handshakes with keys may break off before the keys are what is wrong: a peer that knows
another server key hangs up without a word, and so, for a moment, does a proxy before a runtime that
starts."""


@dataclass(frozen=True, slots=True)
class ClientCurve:
    """Keys in Z85 text: the server's public one, a pair of ours."""

    server_public: str
    public: str
    secret: str = field(repr=False)


def read_curve(
    server_key: str | Path | None, client_key: str | Path | None, *, endpoint: str
) -> ClientCurve | None:
    """Return the keys for ``endpoint``; None when neither is given.

    ``server_key`` is the server's public key in Z85 text or its file (``server.key``),
    ``client_key`` the file with our own pair (``NAME.key_secret``), both as ``radixrt keygen``
    writes them. Raises ``InvalidArgument``, which never quotes a secret.
    """
    if not server_key and not client_key:
        return None
    if not server_key or not client_key:
        given, missing = (
            ("server_key", "client_key") if server_key else ("client_key", "server_key")
        )
        what = "the server's public key" if missing == "server_key" else "your NAME.key_secret"
        value = server_key or client_key
        raise InvalidArgument(given, str(value), f"give {missing}, {what}, as well")
    if not endpoint.startswith("tcp://"):
        raise InvalidArgument("endpoint", endpoint, "keys are for tcp://HOST:PORT; leave them out")
    public, secret = _read(client_key, "client_key")
    if secret is None:
        raise InvalidArgument(
            "client_key", str(client_key), "it holds no secret key; give the file NAME.key_secret"
        )
    return ClientCurve(_server_public(server_key), public, secret)


class Handshake:
    """Watches how a connecting socket's handshakes end. Belongs to the socket's thread."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str, curve: ClientCurve | None) -> None:
        import zmq

        self._endpoint = endpoint
        self._curve = curve
        self._broken_since: float | None = None
        self._monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """Readable when there is something to ``read``."""
        return self._monitor

    @property
    def due(self) -> float | None:
        """When to ``read`` at the latest, on the monotonic clock."""
        if self._curve is None or self._broken_since is None:
            return None
        return self._broken_since + PATIENCE_S

    @property
    def is_breaking(self) -> bool:
        """Whether somebody took the connection and broke its last handshake off."""
        return self._broken_since is not None

    def read(self) -> None:
        """Take note of what happened. Raises ``KeysRefused`` when more attempts are of no use."""
        import zmq
        import zmq.utils.monitor

        while int(self._monitor.get(zmq.EVENTS)) & zmq.POLLIN:
            told = zmq.utils.monitor.recv_monitor_message(self._monitor, zmq.NOBLOCK)
            if told["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._broken_since = None
            elif told["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise KeysRefused(self._not_allowed())
            elif told["value"] == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                raise KeysRefused(self._other_way())
            elif self._broken_since is None:
                self._broken_since = time.monotonic()
        if self.due is not None and time.monotonic() >= self.due:
            raise KeysRefused(
                f"{self._endpoint} breaks every handshake off: server_key is not the public key "
                "that it has; give the one of the certificate that `radixrt serve --curve-secret` "
                "names there"
            )

    def _not_allowed(self) -> str:
        if self._curve is None:
            return self._other_way()
        return (
            f"{self._endpoint} does not know the client key {self._curve.public}: add that line to "
            "the file that `radixrt serve --allow` names there and restart it, or give another "
            "client_key"
        )

    def _other_way(self) -> str:
        if self._curve is None:
            return (
                f"{self._endpoint} wants keys: give server_key and client_key "
                "(`radixrt keygen` makes a pair)"
            )
        return f"{self._endpoint} takes no keys: leave server_key and client_key out"


def _server_public(server_key: str | Path) -> str:
    if isinstance(server_key, Path) or Path(server_key).is_file():
        return _read(server_key, "server_key")[0]
    if len(server_key) == KEY_LEN and server_key.isascii():
        return server_key
    raise InvalidArgument(
        "server_key",
        server_key,
        f"it is no file and no key of {KEY_LEN} characters; give the file server.key, or the line "
        "that `radixrt keygen` printed",
    )


def _read(file: str | Path, argument: str) -> tuple[str, str | None]:
    import zmq.auth

    try:
        public, secret = zmq.auth.load_certificate(file)
    except (OSError, ValueError) as error:
        way_out = f"cannot be read as a file of `radixrt keygen`: {error}"
        raise InvalidArgument(argument, str(file), way_out) from None
    return public.decode(), None if secret is None else secret.decode()
