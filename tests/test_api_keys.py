"""Files of API keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from radixrt.cli.api_keys import read_file, read_keys
from radixrt.errors import ConfigError
from radixrt.gateway.settings import ApiKey

KEY = "k" * 20


def test_a_line_is_a_key_with_a_cache_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\nanna {KEY}1\n{KEY}2\n")
    assert read_file(file) == [
        ApiKey(name="anna", key=KEY + "1", tenant="anna"),
        ApiKey(name="key-4", key=KEY + "2", tenant="key-4"),
    ]


def test_a_table_can_share_a_tenant_and_have_limits(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        f'[[keys]]\nname = "a"\nkey = "{KEY}"\ntenant = "team"\nmax_concurrent = 4\n'
        f'[[keys]]\nname = "b"\nkey = "{KEY}b"\nrequests_per_minute = 60\n'
    )
    assert read_file(file) == [
        ApiKey(name="a", key=KEY, tenant="team", max_concurrent=4),
        ApiKey(name="b", key=KEY + "b", tenant="b", requests_per_minute=60),
    ]


def test_keys_come_from_files_and_the_environment(tmp_path: Path) -> None:
    clients, admins = tmp_path / "clients", tmp_path / "admins"
    clients.write_text(f"anna {KEY}1")
    admins.write_text(f"root {KEY}2")
    environment = {"RADIXRT_API_KEY": KEY + "3", "RADIXRT_ADMIN_KEY": KEY + "4"}
    keys = read_keys(clients, admins, environment)
    assert [(key.name, key.admin) for key in keys] == [
        ("anna", False), ("root", True), ("environment", False), ("admin", True),
    ]  # fmt: skip
    assert len({key.tenant for key in keys}) == 4
    assert read_keys(None, None, {}) == ()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("keys", "", "has no keys"),
        ("keys", f"a b {KEY}", "keys:1: write NAME KEY"),
        ("keys.toml", "x = 1", r"\[\[keys\]\]"),
        ("keys.toml", "[[keys]]\nname = 'a'", "key"),
        ("keys.toml", f"[[keys]]\nname = 'a'\nkey = '{KEY}'\ntennant = 'x'", "a key has name"),
        ("keys.toml", f"[[keys]]\nname = 'a'\nkey = '{KEY}'\nmax_concurrent = '4'", "int"),
        ("keys.toml", "[[keys]", "not TOML"),
    ],
)
def test_a_file_without_usable_keys_is_refused_without_quoting_one(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(ConfigError, match=said) as refused:
        read_file(file)
    assert KEY not in str(refused.value)
