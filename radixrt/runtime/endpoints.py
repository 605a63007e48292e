"""Where clients connect: ipc sockets that only their owner can open, tcp with keys."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket as sockets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from radixrt.errors import ConfigError
from radixrt.protocol import MAX_FRAME_BYTES
from radixrt.transport import HIGH_WATER_MARK

_LONGEST_IPC_PATH = 100
_BACKLOG = 1024
_KEY_LEN = 40
_ZAP_DOMAIN = "radixrt"


@dataclass(frozen=True, slots=True)
class ServerCurve:
    """Keys of a tcp endpoint: the server's certificate file (with its secret key), and a file with
    the public keys (Z85, one a line) of the clients that may connect."""

    secret_file: Path
    allow_file: Path


def is_loopback(endpoint: str) -> bool:
    """Whether a tcp endpoint is reachable from this machine only."""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def check_endpoint(endpoint: str, curve: ServerCurve | None, *, is_open: bool = False) -> None:
    """Raise ``ConfigError`` for an endpoint that cannot or must not be bound: one that other
    machines reach without keys, unless it is to be open."""
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        if not path or len(path.encode()) > _LONGEST_IPC_PATH:
            raise ConfigError(
                f"endpoint={endpoint!r}: the path has to have 1 to {_LONGEST_IPC_PATH} bytes"
            )
        if _is_served(path):
            raise ConfigError(
                f"endpoint={endpoint!r}: another process serves there; choose another"
            )
        if curve is not None:
            raise ConfigError(
                f"endpoint={endpoint!r}: curve keys are for tcp://HOST:PORT; an ipc socket is open "
                "to its owner alone"
            )
        return
    if not endpoint.startswith("tcp://"):
        raise ConfigError(f"endpoint={endpoint!r}: use ipc://PATH or tcp://HOST:PORT")
    if curve is None and not is_open and not is_loopback(endpoint):
        raise ConfigError(
            f"endpoint={endpoint!r} is open to other machines: give --curve-secret and --allow "
            "(`radixrt keygen` makes keys), bind tcp://127.0.0.1:PORT or ipc://PATH, or say "
            "--insecure"
        )


@contextlib.contextmanager
def private_directory() -> Iterator[Path]:
    """A directory that only its owner can open, removed in the end."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="radixrt-", dir=base, ignore_cleanup_errors=True) as d:
        yield Path(d)  # created with mode 0700


class ClientSocket:
    """The ROUTER that clients connect to, bound when constructed."""

    def __init__(
        self,
        endpoint: str,
        context: zmq.Context[zmq.Socket[bytes]],
        curve: ServerCurve | None,
    ) -> None:
        """Raises ``ConfigError`` when the endpoint cannot be bound or keys cannot be read."""
        self._path = Path(endpoint.removeprefix("ipc://")) if endpoint[:6] == "ipc://" else None
        self._authenticator: ThreadAuthenticator | None = None
        router = context.socket(zmq.ROUTER)
        router.set(zmq.ROUTER_MANDATORY, 1)
        router.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        router.set(zmq.HEARTBEAT_IVL, 5_000)
        router.set(zmq.HEARTBEAT_TIMEOUT, 15_000)
        router.set(zmq.BACKLOG, _BACKLOG)
        router.sndhwm = router.rcvhwm = HIGH_WATER_MARK
        router.linger = 500
        self.router: zmq.Socket[bytes] = router
        try:
            if curve is not None:
                self._use_keys(curve, context)
            if self._path is not None:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            router.bind(endpoint)
            if self._path is not None:
                self._path.chmod(0o600)
        except (zmq.ZMQError, OSError, ValueError) as error:
            self.close()
            raise ConfigError(f"endpoint={endpoint!r} cannot be bound: {error}") from None
        bound = router.get(zmq.LAST_ENDPOINT)
        self.endpoint = bound.rstrip(b"\0").decode() if isinstance(bound, bytes) else endpoint

    def close(self) -> None:
        """Close the socket, its socket file and the authenticator's thread."""
        self.router.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _use_keys(self, curve: ServerCurve, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        public, secret = zmq.auth.load_certificate(curve.secret_file)
        if secret is None:
            raise ValueError(f"{curve.secret_file} holds no secret key")
        allowed = read_allowed(curve.allow_file)
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(_ZAP_DOMAIN, _AllowList(allowed))
        self.router.curve_server = True
        self.router.curve_publickey = public
        self.router.curve_secretkey = secret
        self.router.set(zmq.ZAP_DOMAIN, _ZAP_DOMAIN.encode())


class _AllowList:
    def __init__(self, allowed: frozenset[bytes]) -> None:
        self._allowed = allowed

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the client with this public key (Z85) may connect."""
        return key in self._allowed


def read_allowed(path: Path) -> frozenset[bytes]:
    """Return the public keys of a file: the first word of each line. Lines that begin with ``#``
    and no key are comments. Raises ``ValueError``."""
    keys = set()
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
        word = next(iter(line.split()), "#")
        if len(word) == _KEY_LEN:  # may hold a #
            keys.add(word.encode())
        elif not word.startswith("#"):
            raise ValueError(f"{path}:{number}: a public key has {_KEY_LEN} characters")
    return frozenset(keys)


def _is_served(path: str) -> bool:
    if not os.path.exists(path):
        return False
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
