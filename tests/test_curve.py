"""Keys of a client: what is read, and what of a mistake is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq.auth

from radixrt.curve import read_curve
from radixrt.errors import InvalidArgument

ENDPOINT = "tcp://127.0.0.1:1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("server", "me"):
        zmq.auth.create_certificates(tmp_path, name)
    return tmp_path


def test_the_servers_key_is_a_file_or_its_text(folder: Path) -> None:
    public = zmq.auth.load_certificate(folder / "server.key")[0].decode()
    mine = folder / "me.key_secret"
    by_file = read_curve(folder / "server.key", mine, endpoint=ENDPOINT)
    assert by_file == read_curve(public, str(mine), endpoint=ENDPOINT)
    assert by_file is not None
    assert (by_file.server_public, by_file.public) == (
        public,
        zmq.auth.load_certificate(folder / "me.key")[0].decode(),
    )
    assert read_curve(None, None, endpoint="ipc:///x") is None


def test_a_secret_is_never_shown(folder: Path) -> None:
    curve = read_curve(folder / "server.key", folder / "me.key_secret", endpoint=ENDPOINT)
    assert curve is not None
    assert curve.secret not in repr(curve)


@pytest.mark.parametrize(
    ("server", "client", "endpoint", "said"),
    [
        ("server.key", None, ENDPOINT, "give client_key"),
        (None, "me.key_secret", ENDPOINT, "give server_key"),
        ("server.key", "me.key_secret", "ipc:///x", "keys are for tcp"),
        ("server.key", "me.key", ENDPOINT, "NAME.key_secret"),
        ("server.key", "none", ENDPOINT, "client_key=.*cannot be read"),
        ("none", "me.key_secret", ENDPOINT, "server_key=.*cannot be read"),
    ],
)
def test_keys_that_cannot_be_meant_say_what_is_wrong(
    folder: Path, server: str | None, client: str | None, endpoint: str, said: str
) -> None:
    files = [folder / name if name else None for name in (server, client)]
    with pytest.raises(InvalidArgument, match=said):
        read_curve(*files, endpoint=endpoint)


def test_a_text_that_is_no_key_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="40 characters"):
        read_curve("server.kee", folder / "me.key_secret", endpoint=ENDPOINT)
